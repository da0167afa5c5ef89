//! Checks before a run: the targets and the open-file limit.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Refuses addresses of other machines unless `own` is set (`--i-own-this`).
///
/// # Errors
/// If an address is refused, or is not an `http://` URL.
pub fn check_targets(targets: &[String], own: bool) -> Result<(), String> {
    if targets.is_empty() {
        return Err("no target: give --target http://host:port".to_owned());
    }
    for target in targets {
        let Some(authority) = target.strip_prefix("http://") else {
            return Err(format!(
                "{target} does not begin with http:// (with TLS, target the port behind the proxy)"
            ));
        };

        if !own && !is_loopback(authority.split('/').next().unwrap_or_default()) {
            return Err(format!(
                "{target} is another machine: pass --i-own-this if you may load it"
            ));
        }
    }
    Ok(())
}

fn is_loopback(authority: &str) -> bool {
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    // Names are not resolved: DNS may answer differently when the load starts.
    host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Raises the open-file limit of this process to its hard limit. Returns the new limit.
///
/// # Errors
/// If the hard limit is below `wanted`.
pub fn raise_file_limit(wanted: u64) -> Result<u64, String> {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    if limit.current.is_some_and(|current| current < most) {
        // A failure shows in the limit that is read next.
        let _ =
            setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }

    let now = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if now < wanted {
        return Err(format!(
            "{wanted} open files are needed, but the limit is {now}: run `ulimit -n {wanted}` \
             first, or run as root"
        ));
    }
    Ok(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_on_other_machines_need_the_flag() {
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
    fn a_file_limit_that_is_too_low_is_an_error() {
        assert!(raise_file_limit(1).is_ok());
        let limit = getrlimit(Resource::Nofile).maximum;
        if let Some(most) = limit {
            assert!(raise_file_limit(most + 1).is_err_and(|words| words.contains("ulimit")));
        }
    }
}
