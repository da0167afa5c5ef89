//! Promises that hold against users and circumstances that try to break them.

mod budgets;
