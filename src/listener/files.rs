//! The limit of open files of the process. Every connection is an open file.

use crate::model::limits::FILES_RESERVE;

/// Raises the soft limit of open files to the hard limit, if the system permits it. Returns the
/// soft limit; `None` if there is no limit.
pub fn raise_limit() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum && setrlimit(Resource::Nofile, raised).is_ok() {
        return limit.maximum;
    }
    limit.current
}

/// A warning for the operator if the limit is too low for this many connections.
pub fn warning(limit: Option<u64>, connections_max: usize) -> Option<String> {
    let needed = u64::try_from(connections_max.saturating_add(FILES_RESERVE)).unwrap_or(u64::MAX);
    let limit = limit.filter(|limit| *limit < needed)?;
    Some(format!(
        "the process can have {limit} files open, but connections_max needs {needed}: \
         raise the hard limit (ulimit -Hn, LimitNOFILE) or lower STARLING_CONNECTIONS_MAX"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_below_the_need_of_connections_max_gives_a_warning_with_both_numbers() {
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
