//! `sends --until-slo`: searches for the largest number of users that meets a latency objective.

use super::{Measured, speed};
use crate::tool::arith::{ratio, real, shown, whole};
use crate::tool::cli::Load;
use crate::tool::stage::{Figure, Stage};
use crate::tool::watch::Spent;

/// Share of failed sends that the objective allows.
const ERRORS_SHARE_MAX: f64 = 0.001;
/// The search ends when the bounds are this close, as a share of the next step.
const CLOSE: f64 = 0.15;
/// Most steps; each takes as long as a run.
const STEPS_MAX: usize = 16;
/// Share of a core that may be in constant use, for the estimate of larger deployments.
const CORE_SHARE: f64 = 0.7;

/// A binary search: doubles the users until the objective fails, then bisects.
#[derive(Clone, Copy, Debug)]
struct Search {
    first: u32,
    most: u32,
    /// Largest number that met the objective.
    held: Option<u32>,
    /// Smallest number that failed it.
    broke: Option<u32>,
    steps: usize,
}

impl Search {
    fn new(first: u32, most: u32) -> Self {
        Self { first: first.min(most), most, held: None, broke: None, steps: 0 }
    }

    fn next(&self) -> Option<u32> {
        if self.steps >= STEPS_MAX {
            return None;
        }

        let next = match (self.held, self.broke) {
            (None, None) => self.first,
            (Some(held), None) => held.saturating_mul(2).min(self.most),
            (held, Some(broke)) => held.unwrap_or(0).midpoint(broke),
        };
        // A private chat needs two users.
        let next = next / 2 * 2;

        let known = self.held.is_some_and(|held| next <= held)
            || self.broke.is_some_and(|broke| next >= broke);
        let gap =
            self.broke.map_or(f64::INFINITY, |broke| f64::from(broke - self.held.unwrap_or(0)));
        (next > 0 && !known && gap > CLOSE * f64::from(next)).then_some(next)
    }

    fn note(&mut self, users: u32, held: bool) {
        self.steps += 1;
        let side = if held { &mut self.held } else { &mut self.broke };
        *side = Some(users);
    }
}

/// Messages per second of this many users.
fn rate(users: u32, per_minute: f64) -> f64 {
    f64::from(users) * per_minute / 60.0
}

/// Searches for the largest number of online users whose p99 of delivery is at most `objective_ms`.
/// Returns the measurements with that number.
pub(super) async fn search(stage: &Stage, objective_ms: f64) -> Result<Measured, String> {
    let most = u32::try_from(stage.accounts.len()).unwrap_or(u32::MAX).min(20_000);
    let mut search = Search::new(u32::from(stage.load.senders) * 2, most);
    let mut best = None;
    while let Some(users) = search.next() {
        let messages = rate(users, stage.load.per_minute);
        eprintln!("measuring {users} users with {} messages per second", shown(messages));

        let load = Load {
            senders: u16::try_from(users / 2).unwrap_or(u16::MAX),
            rate: Some(u32::try_from(whole(messages)).unwrap_or(u32::MAX).max(1)),
            peers_online: true,
            ..stage.load.clone()
        };

        let measured = speed::sends(&Stage { load, ..stage.clone() }).await?;
        let held = holds(&measured, objective_ms);
        search.note(users, held);
        if held {
            best = Some((users, measured));
        }
    }

    let (users, mut measured) =
        best.ok_or("the smallest number of users missed the objective: lower --senders")?;
    let mut figures = vec![Figure::rate(
        format!("largest community with delivery p99 within {objective_ms} ms"),
        f64::from(users),
        "users",
    )];

    let end = if search.broke.is_some() {
        "the next size missed the objective"
    } else {
        "no larger size was tried, because there are no more accounts"
    };
    measured.proven = format!("{}; {end}", measured.proven);

    figures.extend(sizing(users, &measured.spent));
    figures.append(&mut measured.figures);
    Ok(Measured { figures, ..measured })
}

/// Whether a run met the objective.
fn holds(measured: &Measured, objective_ms: f64) -> bool {
    let delivered = measured.meters.iter().find(|meter| meter.name == "deliveries");
    let sent = measured
        .meters
        .iter()
        .find(|meter| meter.name == "sends")
        .map_or(0, |meter| meter.count_with_warm_up);
    let failed = ratio(real(measured.errors), real(sent + measured.errors));
    delivered.is_some_and(|it| it.count > 0 && real(it.p99_us) / 1e3 <= objective_ms)
        && failed <= ERRORS_SHARE_MAX
}

/// Estimates how many users a core of each role can serve at [`CORE_SHARE`].
fn sizing(users: u32, spent: &Spent) -> Vec<Figure> {
    let per_core = |cpu_s: f64| ratio(f64::from(users) * CORE_SHARE, ratio(cpu_s, spent.seconds));
    let figure = |role: &'static str, cpu_s| {
        Figure::rate(
            format!("users a core of {role} carries at {:.0} %", CORE_SHARE * 100.0),
            per_core(cpu_s),
            "users",
        )
    };
    spent.roles.iter().map(|role| figure(role.role, role.cpu_s)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tool::watch::RoleUse;

    /// Runs a search whose objective holds up to `limit` users. Returns the result and the steps.
    fn found(first: u32, most: u32, limit: u32) -> (Option<u32>, Vec<u32>) {
        let (mut search, mut tried) = (Search::new(first, most), Vec::new());
        while let Some(users) = search.next() {
            tried.push(users);
            search.note(users, users <= limit);
        }
        (search.held, tried)
    }

    #[test]
    fn the_search_doubles_then_bisects() {
        let (held, tried) = found(100, 10_000, 730);
        assert_eq!(tried, [100, 200, 400, 800, 600, 700]);
        assert_eq!(held, Some(700));
    }

    #[test]
    fn the_search_ends_at_the_accounts_there_are_and_below_the_first_number() {
        assert_eq!(found(100, 300, 1_000_000), (Some(300), vec![100, 200, 300]));
        let (held, tried) = found(1000, 10_000, 130);
        assert!(held.is_some_and(|held| (110..=130).contains(&held)), "{held:?} {tried:?}");
        let (held, tried) = found(64, 64, 0);
        assert!(held.is_none() && tried.len() < STEPS_MAX, "{tried:?}");
    }

    #[test]
    fn sizing_is_users_over_cores_in_use() {
        let roles = vec![RoleUse { role: "server", cpu_s: 5.0, memory_bytes: 0 }];
        let spent = Spent { seconds: 10.0, roles, ..Spent::default() };
        assert!((sizing(1000, &spent)[0].value - 1400.0).abs() < 1e-9);
        assert!((rate(600, 2.0) - 20.0).abs() < 1e-9);
    }
}
