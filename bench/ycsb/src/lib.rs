//! Workload A of YCSB's core package (Cooper et al., "Benchmarking Cloud Serving Systems with YCSB", SoCC 2010) against
//! a Redis server, as YCSB 0.17 plays it.
//!
//! [`zipf`] draws keys with YCSB's distribution, [`workload`] makes operations of them, [`client`] sends them to a
//! server and times each, [`counters`] reads what the machine counted meanwhile, and a [`report`] is what comes out.
//! The program runs in the host of a guest in which the server runs; time is the time stamp counter, which in the lab's
//! emulator counts instructions. A [`session`] is a client without a connection, for who has one of its own.

pub mod client;
mod command;
pub mod counters;
pub mod report;
pub mod session;
pub mod workload;
pub mod zipf;
