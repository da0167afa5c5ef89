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
mod locks;
mod logins;
mod logs;
mod probes;
mod raw;
mod removal;
mod resync;
mod sessions;
mod sets;
mod stores;
mod strangers;
mod sweeps;
mod tls;
mod tokens;
