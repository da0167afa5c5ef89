//! Promises that hold under hostile clients, broken machines and large numbers.

mod locks;
mod removal;
mod sets;
mod stores;
mod sweeps;
