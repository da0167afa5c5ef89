//! What an attacker with one account, a bad failover and a crowd can not do.

mod answers;
mod channels;
mod connections;
mod probes;
mod raw;
