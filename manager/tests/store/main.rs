//! The encrypted store and the Raft storage on top of it, on real files and on a disk in memory that loses power.
#![cfg(test)]

#[cfg(test)]
mod bytes;
#[cfg(test)]
mod damage;
#[cfg(test)]
mod disk;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod raft;
#[cfg(test)]
mod rewrite;
