//! Promises that hold against users and circumstances that try to break them.

mod access;
mod budgets;
mod directory;
mod strangers;
