//! Promises that hold under hostile clients, broken machines and large numbers.

mod removal;
