//! What is done with a running machine: the demo, the scenarios and the benchmarks are made of these steps.
//!
//! A [`Run`] is begun with how its machine is to be ([`prepare`]). Its guests are started and looked after by [`guests`],
//! which know them by a [`witness`]; the stock guest is known by its pages ([`visits`]). [`refresh`] has the reigning host
//! replaced by a [`successor`] while [`watches`] look on from both hosts. [`checked`] puts these together with what must
//! hold after each.

mod checked;
pub mod events;
pub mod exits;
mod guests;
pub mod prepare;
pub mod refresh;
mod run;
pub mod successor;
pub mod visits;
mod watches;
mod witness;

pub use run::Run;
