//! Resistance to attackers with one account, to failovers, and to the load of large communities.

mod access;
mod answers;
mod budgets;
mod channels;
mod cleanup;
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
mod tls;
mod tokens;
