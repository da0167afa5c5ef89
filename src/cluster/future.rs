//! The futures of the traits.

use std::future::Future;
use std::pin::Pin;

/// The future of a trait method. Boxed, so that the traits are object-safe.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
