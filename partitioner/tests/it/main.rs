//! Plans and refreshes carried out on a modelled machine.

mod arbitrary;
mod generations;
mod lab;
mod linux;
mod machine;
mod pieces;
mod plans;
mod properties;
mod transitions;
mod undo;
