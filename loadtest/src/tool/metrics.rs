//! The counters that the servers expose, for deployments on other machines.

use std::collections::BTreeMap;
use std::time::Duration;

use super::arith::{shown, thousands, whole};

/// Timeout of a request.
const ANSWER: Duration = Duration::from_secs(5);
/// Prefix of the server's metrics.
const PREFIX: &str = "starling_";

/// Counters by name, summed over labels and servers.
pub type Counters = BTreeMap<String, f64>;

/// Reads the counters from these URLs.
///
/// # Errors
/// If a server does not answer.
pub async fn read(urls: &[String]) -> Result<Counters, String> {
    let mut all = Counters::new();
    let client = reqwest::Client::builder()
        .timeout(ANSWER)
        .no_proxy()
        .build()
        .map_err(|error| error.to_string())?;

    for url in urls {
        let answer = client.get(url).send().await.and_then(reqwest::Response::error_for_status);
        let text = match answer {
            Ok(answer) => answer.text().await.map_err(|error| format!("{url}: {error}"))?,
            Err(error) => return Err(format!("{url}: {error}")),
        };
        for (name, value) in counters(&text) {
            *all.entry(name).or_default() += value;
        }
    }
    Ok(all)
}

/// Parses the counters (names that end in `_total`) from the Prometheus text format.
fn counters(text: &str) -> impl Iterator<Item = (String, f64)> {
    text.lines().filter_map(|line| {
        let name = line.split(['{', ' ']).next()?.strip_prefix(PREFIX)?.strip_suffix("_total")?;
        // A label may contain spaces. The value is the last word.
        Some((name.to_owned(), line.rsplit(' ').next()?.parse().ok()?))
    })
}

/// Describes the counters that grew between two readings.
pub fn growth(before: &Counters, after: &Counters) -> String {
    let grown = after.iter().filter_map(|(name, value)| {
        let more = value - before.get(name).copied().unwrap_or(0.0);
        let words = if more.fract() == 0.0 { thousands(whole(more)) } else { shown(more) };
        (more > 0.0).then(|| format!("{} {words}", name.replace('_', " ")))
    });
    grown.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_summed_over_labels_and_reported_by_growth() {
        let text = "# HELP starling_sends_total x\nstarling_sends_total 7\n\
                    starling_frames_received_total{type=\"a b\"} 3\n\
                    starling_frames_received_total{type=\"c\"} 4\n\
                    starling_sockets 9\nother_total 5\n";
        let mut after = Counters::new();
        for (name, value) in counters(text) {
            *after.entry(name).or_default() += value;
        }
        let before =
            Counters::from([("sends".to_owned(), 7.0), ("frames_received".to_owned(), 2.0)]);
        assert_eq!(growth(&before, &after), "frames received 5");
        assert_eq!(growth(&after, &after), "");
    }
}
