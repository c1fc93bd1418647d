//! Debian's archive as it is today, and what of it is cached.
//!
//! [`apt`] keeps an apt of the lab's own, apart from the machine's; [`index`] reads the package lists that it fetches;
//! [`kernels`] says which kernels there are and which one a name means; [`trees`] are the Debian trees in the cache;
//! [`fetch`] makes new ones. [`Archive`] puts the first three together, once per run. What is taken from all this is a
//! [`root`], made by one of the [`recipes`]; [`recipe`] says whether today's can be had or an earlier one has to do.

pub(crate) mod apt;
mod archive;
pub(crate) mod fetch;
pub(crate) mod index;
pub(crate) mod kernels;
mod pocket;
mod recipe;
mod recipes;
pub(crate) mod root;
pub(crate) mod trees;

pub(crate) use archive::Archive;
pub(crate) use pocket::Pocket;
