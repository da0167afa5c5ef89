//! The random source for secrets.

use rand::rand_core::UnwrapErr;
use rand::rngs::SysRng;

/// The operating system's random source, for tokens, passwords and codes. A client can't predict
/// its values from earlier ones.
pub(super) fn secrets() -> UnwrapErr<SysRng> {
    UnwrapErr(SysRng)
}
