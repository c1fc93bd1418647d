//! Plans and refreshes carried out on a modelled machine.

mod arbitrary;
mod generations;
mod lab;
mod machine;
mod plans;
mod properties;
mod transitions;
mod undo;
