//! The random source of everything secret.

use rand::rand_core::UnwrapErr;
use rand::rngs::SysRng;

/// The operating system's random source. Tokens, passwords and codes come from it, because no
/// client can predict it from values that it has seen.
pub(super) fn secrets() -> UnwrapErr<SysRng> {
    UnwrapErr(SysRng)
}
