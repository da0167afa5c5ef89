//! What the server does in rarer kinds of trouble, a topic a module.

mod epoch;
mod failover;
mod resync;
