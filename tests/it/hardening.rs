//! What an attacker with one account, a bad failover and a crowd can not do.

mod access;
mod answers;
mod budgets;
mod channels;
mod connections;
mod directory;
mod epoch;
mod failover;
mod guesses;
mod logins;
mod logs;
mod probes;
mod raw;
mod resync;
mod sessions;
mod strangers;
mod tls;
mod tokens;
