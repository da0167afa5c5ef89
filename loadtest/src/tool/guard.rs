//! What keeps the program from harm: whose deployment it may load, and how many files it may open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Refuses addresses that are not of this machine, unless the operator said that the deployment is
/// theirs.
///
/// # Errors
/// In a sentence for the operator.
pub fn check_targets(targets: &[String], own: bool) -> Result<(), String> {
    if targets.is_empty() {
        return Err("no target: give --target http://host:port".to_owned());
    }
    for target in targets {
        let Some(authority) = target.strip_prefix("http://") else {
            return Err(format!(
                "{target} does not begin with http:// (for TLS, measure behind its end)"
            ));
        };
        if !own && !is_loopback(authority.split('/').next().unwrap_or_default()) {
            return Err(format!(
                "{target} is not this machine: say --i-own-this if you may load it"
            ));
        }
    }
    Ok(())
}

fn is_loopback(authority: &str) -> bool {
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    // Not by a lookup: what a name means may change between the look and the load.
    host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Raises the number of files that this process may open as far as it goes, for `wanted` of them.
///
/// # Errors
/// In a sentence that says how to raise it, if it is not enough.
pub fn raise_file_limit(wanted: u64) -> Result<u64, String> {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    if limit.current.is_some_and(|current| current < most) {
        // What it may open without this is looked at next.
        let _ =
            setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
    let now = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if now < wanted {
        return Err(format!(
            "{wanted} open files are needed and {now} allowed: run `ulimit -n {wanted}` first, or as root"
        ));
    }
    Ok(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loaded_without_a_word() {
        let check = |target: &str, own| check_targets(&[target.to_owned()], own).is_ok();
        for near in [
            "http://127.0.0.1:8080",
            "http://localhost:1",
            "http://[::1]:80/",
            "http://127.9.9.9",
            "http://127.0.0.1:9090/metrics",
        ] {
            assert!(check(near, false), "{near}");
        }
        for far in [
            "http://10.0.0.1:80",
            "http://example.org",
            "http://127.0.0.1.example.org:80",
            "http://localhost.example:1",
            "http://10.0.0.1/127.0.0.1",
        ] {
            assert!(!check(far, false), "{far}");
            assert!(check(far, true), "{far}");
        }
        assert!(!check("https://localhost", true));
        assert!(check_targets(&[], true).is_err());
    }

    #[test]
    fn a_limit_that_is_not_enough_is_told() {
        assert!(raise_file_limit(1).is_ok());
        let limit = getrlimit(Resource::Nofile).maximum;
        if let Some(most) = limit {
            assert!(raise_file_limit(most + 1).is_err_and(|words| words.contains("ulimit")));
        }
    }
}
