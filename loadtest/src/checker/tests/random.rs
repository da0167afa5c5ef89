//! Random runs of a correct server are clean. Without one event or message they are not.

use std::time::Instant;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::scenario::Scenario;
use crate::history::{Digest, Name, Outcome};

fn random_run(seed: u64, steps: usize) -> Scenario {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut run = Scenario::new();
    let users: Vec<Name> = (0..5).map(|number| run.name(&format!("u{number}"))).collect();
    let chats: Vec<Name> = (0..3).map(|_| run.chat(&users[..3])).collect();

    for user in &users {
        run.device(*user);
    }

    let mut keys = 0;
    for _ in 0..steps {
        let chat = chats[rng.random_range(0..chats.len())];
        let user = users[rng.random_range(0..users.len())];
        let device = rng.random_range(0..users.len());
        let messages = u32::try_from(run.of(chat).messages.len()).unwrap();
        let is_member = run.is_member(chat, user);
        let some_id = if messages > 0 { rng.random_range(1..=messages) } else { 0 };

        match rng.random_range(0..100) {
            0..40 if is_member => {
                run.send(user, chat);
            }
            40..50 if is_member => {
                keys += 1;
                let id = run.send_keyed(user, chat, Digest(keys), rng.random());
                for _ in 0..rng.random_range(0..3) {
                    run.repeat(chat, id);
                }
            }
            50..58
                if some_id > 0
                    && run.of(chat).messages[some_id as usize - 1].seen.text != Digest::NONE =>
            {
                run.edit(chat, some_id);
            }
            58..60
                if some_id > 0
                    && run.of(chat).messages[some_id as usize - 1].seen.text != Digest::NONE =>
            {
                run.remove(chat, some_id);
            }
            60..68 if is_member => {
                run.history(user, chat, 20);
            }
            68..74 if is_member => {
                run.changes(user, chat, some_id);
            }
            74..82 if run.is_live(device) => run.cut(device),
            82..90 if !run.is_live(device) => run.connect(device),
            90..93 => run.block(device),
            93..96 => run.heal(device),
            // The first user stays, because only a member can add the others.
            96..98 if is_member && user != users[0] => run.leave(users[0], chat, user),
            98..100 if !is_member => run.join(users[0], chat, user),
            _ => {}
        }
    }

    run.finish();
    run
}

#[test]
fn random_runs_of_a_correct_server_are_clean() {
    for seed in 0..150 {
        let report = random_run(seed, 400).check();
        assert!(report.is_clean(), "seed {seed}:\n{report}");
        assert!(report.counts.messages > 50, "seed {seed}:\n{report}");
    }
}

#[test]
fn most_events_removed_from_a_random_run_are_detected() {
    let (mut tried, mut caught) = (0, 0);
    for seed in 0..150 {
        let mut run = random_run(seed, 200);
        let mut rng = StdRng::seed_from_u64(seed);
        let device = rng.random_range(0..run.record.devices.len());
        let entries = &mut run.record.devices[device].entries;
        let events: Vec<usize> =
            (0..entries.len()).filter(|index| entries[*index].told.event().is_some()).collect();

        if events.is_empty() {
            continue;
        }

        entries.remove(events[rng.random_range(0..events.len())]);
        tried += 1;
        caught += usize::from(!run.check().is_clean());
    }

    // The others are items that changed again, which a hub that heals may send only once.
    assert!(caught * 10 >= tried * 7, "{caught} of {tried}");
}

#[test]
fn a_message_removed_from_the_log_of_a_random_run_is_always_detected() {
    for seed in 0..100 {
        let mut run = random_run(seed, 200);
        let mut rng = StdRng::seed_from_u64(seed);
        let seen =
            run.record.ops.iter().filter(|op| matches!(op.outcome, Some(Outcome::Ok(_)))).count();
        let messages = &mut run.log.chats[0].messages;
        if seen > 0 && !messages.is_empty() {
            messages.remove(rng.random_range(0..messages.len()));
            assert!(!run.check().is_clean(), "seed {seed}");
        }
    }
}

/// Prints the speed of the checker: `cargo test --release -p starling-loadtest -- --ignored
/// --nocapture large`.
#[test]
#[ignore = "measures, and takes a while"]
#[expect(clippy::print_stdout, reason = "it prints a figure")]
fn a_large_run_is_checked_in_seconds() {
    let mut run = Scenario::new();
    let users: Vec<Name> = (0..16).map(|number| run.name(&format!("u{number}"))).collect();
    let chats: Vec<Name> = (0..10).map(|_| run.chat(&users)).collect();

    for user in &users {
        run.device(*user);
    }

    for number in 0..300_000 {
        let (user, chat) = (users[number % users.len()], chats[number % chats.len()]);
        let id = run.send(user, chat);
        if number % 10 == 0 {
            run.edit(chat, id);
        }
    }

    run.finish();

    let entries: usize = run.record.devices.iter().map(|device| device.entries.len()).sum();
    let began = Instant::now();
    let report = run.check();
    println!(
        "{} operations and {entries} frames in {:?}\n{report}",
        run.record.ops.len(),
        began.elapsed()
    );
    assert!(report.is_clean(), "{report}");
}

#[test]
fn long_random_runs_with_resets_are_clean() {
    let mut resets = 0;
    for seed in 1000..1010 {
        let report = random_run(seed, 4000).check();
        assert!(report.is_clean(), "seed {seed}:\n{report}");
        resets += report.counts.resets;
    }
    assert!(resets > 10, "{resets} resets");
}
