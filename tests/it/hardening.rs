//! What an attacker may try, and what the server does then.

mod guesses;
mod logins;
mod logs;
mod sessions;
mod tls;
mod tokens;
