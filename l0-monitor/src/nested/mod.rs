//! The nested mode: L0 in VMX root under a KVM that goes on as if it still were.
//!
//! # How it works
//! A host calls ([`transition`]), and L0 takes its state as the guest state of a VMCS of its own, VMCS01 ([`vmcs01`]),
//! without leaving VMX operation: the host's VMCSs stay active and launched. The host goes on in VMX non-root. Its
//! guests run on the very VMCSs that its KVM made; only the host-state area in them is L0's while they are
//! [adopted](adopt).
//!
//! Every VM exit comes from the door to [`run`], is turned into a decision by [`exits`], and carried out by `run`,
//! which tells the door what is next:
//!
//! ```text
//!            exit of the guest                       exit of the host
//! VMCS02 ----------------------> exits::reflect      VMCS01 ---> exits::serve_host
//!                                    |                              |   cpuid, msr, cr, vmx_instructions, io, ept
//!    VMCS01 := state that hardware   |                              |
//!    would have loaded at the exit   v                              v
//!                                 Next::Host                    Next::{Host, Guest, Call, Die, Init}
//! ```
//!
//! # What is where
//! | module | what |
//! | --- | --- |
//! | [`run`] | from an exit to what is next |
//! | [`exits`] | what an exit comes to |
//! | [`steady_path`], [`steady`] | the same for the two exits that nearly all are; what is prepared for it |
//! | [`context`] | registers and fields of the host that is served, and what is around its CPU |
//! | [`this_machine`] | what is around the CPU on this machine: partition, trace, hosts |
//! | [`vmx_instructions`] | the host's VMX instructions |
//! | [`host_area`], [`adopt`] | host-state area: loading it, replacing it |
//! | [`fingerprint`] | proof that a VMCS is the same afterwards |
//! | [`machine_check`] | machine checks on the host's CPU |
//! | [`control_registers`], [`cpuid_and_msrs`] | CR0, CR4; CPUID, MSRs, XCR0 |
//! | [`predictors`] | what the CPU learned of a guest's branches |
//! | [`shadow`] | VMREAD and VMWRITE without an exit |
//! | [`tracing`] | what the CPU would write down of L0 |
//! | [`trapped_fields`] | which fields the host's VMREADs and VMWRITEs exit for |
//! | [`walk`], [`decode`] | reading the host's memory operands and MOVs |
//! | [`transition`] | native to nested and back |
//! | [`hypercall`] | what a host may ask for |
//! | [`vcpu`], [`regions`] | what L0 keeps for a CPU; pages that the CPU uses |
//!
//! Everything but `run`, `this_machine`, `transition`, `hypercall`, `vmcs01` and `regions` is generic over [`crate::vmx::Hardware`] and
//! [`context::Surroundings`], and is tested against a model of them.

pub(crate) mod adopt;
pub(crate) mod context;
#[cfg(test)]
mod control_register_tests;
pub(crate) mod control_registers;
pub(crate) mod cpuid_and_msrs;
pub(crate) mod decode;
pub(crate) mod exits;
pub(crate) mod fingerprint;
pub(crate) mod host_area;
pub(crate) mod hypercall;
#[cfg(all(test, feature = "fuzz"))]
mod instruction_tests;
pub(crate) mod machine_check;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod model;
pub(crate) mod predictors;
pub(crate) mod regions;
pub(crate) mod run;
pub(crate) mod shadow;
#[cfg(test)]
mod shadow_tests;
pub(crate) mod steady;
pub(crate) mod steady_path;
#[cfg(test)]
mod steady_tests;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod test_bed;
#[cfg(test)]
mod tests;
pub(crate) mod this_machine;
pub(crate) mod tracing;
pub(crate) mod transition;
pub(crate) mod trapped_fields;
pub(crate) mod vcpu;
pub(crate) mod vmcs01;
pub(crate) mod vmx_instructions;
pub(crate) mod walk;
