//! How many files the process may have open, since every connection is one.

use crate::model::limits::FILES_RESERVE;

/// Raises the soft limit of open files to the hard limit, as far as the system lets it. The limit
/// then in force; `None` if there is none.
pub fn raise_limit() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum && setrlimit(Resource::Nofile, raised).is_ok() {
        return limit.maximum;
    }
    limit.current
}

/// A sentence for the operator if the limit does not do for so many connections.
pub fn warning(limit: Option<u64>, connections_max: usize) -> Option<String> {
    let needed = u64::try_from(connections_max.saturating_add(FILES_RESERVE)).unwrap_or(u64::MAX);
    let limit = limit.filter(|limit| *limit < needed)?;
    Some(format!(
        "the process may have {limit} files open, but connections_max needs {needed}: raise the hard limit (ulimit -Hn, \
         LimitNOFILE) or lower STARLING_CONNECTIONS_MAX"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_below_what_connections_need_is_said_with_both_numbers() {
        assert_eq!(warning(None, 20_000), None);
        assert_eq!(warning(Some(20_256), 20_000), None);
        let sentence = warning(Some(1024), 20_000).unwrap();
        assert!(sentence.contains("1024") && sentence.contains("20256"), "{sentence}");
        assert!(sentence.contains("STARLING_CONNECTIONS_MAX"), "{sentence}");
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_limit() {
        let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
        assert_eq!(raise_limit(), hard);
        assert_eq!(rustix::process::getrlimit(rustix::process::Resource::Nofile).current, hard);
    }
}
