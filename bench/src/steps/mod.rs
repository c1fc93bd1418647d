//! What is done with a running machine: the demo, the scenarios and the benchmarks are made of these steps.
//!
//! A [`Run`] is begun with how its machine is to be ([`prepare`]). Its guests are started and looked after by [`guests`],
//! which know them by a [`witness`]; the stock guest is known by its pages ([`visits`]), one by the [`client`] that it serves.
//! [`refresh`] has the reigning host replaced by a [`successor`] while [`watches`] look on from both hosts. [`checked`] puts these
//! together with what must hold after each; [`halts`] has a refresh wait at two places, for what is to be tried on both hosts. On the second board,
//! which has no VMX, no host is replaced: [`board`] has what must hold there.

pub(crate) mod board;
mod checked;
mod client;
pub(crate) mod events;
pub(crate) mod exits;
mod guests;
mod halts;
pub(crate) mod prepare;
pub(crate) mod refresh;
mod run;
pub(crate) mod successor;
pub(crate) mod visits;
pub(crate) mod vmcore;
mod watches;
mod witness;

pub(crate) use run::Run;

/// Shell text: `daemon` prints the process of a host's agent, if there is one.
pub(crate) const DAEMON: &str = "daemon() { for p in /proc/[0-9]*; do \
                                 [ \"$(tr '\\0' ' ' <$p/cmdline 2>/dev/null)\" = 'locum daemon ' ] && echo ${p#/proc/}; \
                                 done; true; }";
