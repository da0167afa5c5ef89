//! What an attacker with one account, a bad failover and a crowd can not do.

mod channels;
