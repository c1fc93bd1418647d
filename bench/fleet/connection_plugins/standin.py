# SPDX-License-Identifier: MIT OR Apache-2.0
"""Connects to what stands for a machine: runs everything here, while that program says that the machine can be reached."""

from __future__ import annotations

import subprocess

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection.local import Connection as Local

DOCUMENTATION = """
    name: standin
    short_description: run where ansible runs, if the machine can be reached
    description: For tests.
    options:
      program:
        description: What stands for the machine.
        required: true
        vars:
          - name: locum_program
      become_success_timeout:
        description: As of the plugin local.
        type: int
        default: 10
      become_strip_preamble:
        description: As of the plugin local.
        type: bool
        default: true
    extends_documentation_fragment:
      - connection_pipelining
"""


class Connection(Local):
    """To one machine."""

    transport = "standin"

    def exec_command(self, cmd, in_data=None, sudoable=True):
        program = self.get_option("program")
        if subprocess.run([program, "connect"], check=False).returncode != 0:
            raise AnsibleConnectionFailure(f"{program} cannot be reached")
        return super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
