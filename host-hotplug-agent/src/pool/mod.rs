//! The pool: which guest's RAM lies where.

pub mod table;
