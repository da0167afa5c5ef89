//! What an attacker may try, and what the server does then.

mod sessions;
