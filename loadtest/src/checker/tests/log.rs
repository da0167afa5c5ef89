//! Tests of I1 to I5, I8 to I11 and I15 to I18: logs, answers and reads.

use super::super::{Evidence, Exposed, Invariant, check};
use super::{Crew, broken, crew, violates};
use crate::history::{Digest, Kind, MemorySample, Op, Outcome, Seen, State, Stream, Value};

#[test]
fn a_quiet_run_is_clean_and_counted() {
    let Crew { mut run, ann, chat, .. } = crew();
    run.edit(chat, 1);
    run.remove(chat, 3);
    run.history(ann, chat, 50);
    run.changes(ann, chat, 2);
    run.finish();

    let report = run.check();
    assert!(report.is_clean(), "{report}");
    assert_eq!(
        (report.counts.sends, report.counts.acknowledged, report.counts.messages),
        (6, 6, 6)
    );
    assert!(report.to_string().contains("clean"), "{report}");
}

#[test]
fn a_missing_message_and_a_rev_used_twice_are_found() {
    let Crew { mut run, chat, .. } = crew();
    run.finish();

    let report = broken(run, |run| {
        run.of(chat).messages.remove(2);
    });
    violates(&report, Invariant::I1);
    violates(&report, Invariant::I2);
    violates(&report, Invariant::I5);
    assert!(report.counts.lost > 0, "{report}");

    let Crew { mut run, chat, .. } = crew();
    run.finish();
    violates(&broken(run, |run| run.of(chat).messages[2].seen.rev = 3), Invariant::I1);
}

#[test]
fn an_acknowledged_message_with_another_sender_in_the_log_is_found() {
    let Crew { mut run, chat, bob, .. } = crew();
    run.finish();
    violates(&broken(run, |run| run.of(chat).messages[0].seen.sender = bob), Invariant::I2);
}

#[test]
fn an_acknowledged_edit_or_removal_that_is_not_in_the_log_is_found() {
    let Crew { mut run, chat, .. } = crew();
    let before = run.of(chat).messages[1].seen;
    run.edit(chat, 2);
    run.finish();

    let report =
        broken(run, |run| run.of(chat).messages[1].seen = Seen { rev: before.rev, ..before });
    violates(&report, Invariant::I2);

    let Crew { mut run, chat, .. } = crew();
    let before = run.of(chat).messages[1].seen;
    run.remove(chat, 2);
    run.finish();
    violates(&broken(run, |run| run.of(chat).messages[1].seen = before), Invariant::I2);
}

#[test]
fn a_message_that_was_never_sent_or_was_refused_is_found() {
    let Crew { mut run, ann, chat, .. } = crew();
    run.send(ann, chat);
    run.finish();

    let report = broken(run, |run| drop(run.record.ops.pop()));
    violates(&report, Invariant::I3);

    let Crew { mut run, ann, chat, .. } = crew();
    run.send_keyed(ann, chat, Digest::NONE, false);
    run.finish();

    let report = broken(run, |run| {
        let refused = Outcome::Refused { status: 403, code: ann };
        run.record.ops.last_mut().unwrap().outcome = Some(refused);
    });
    violates(&report, Invariant::I3);
}

#[test]
fn a_change_without_a_request_is_found() {
    let Crew { mut run, chat, .. } = crew();
    run.edit(chat, 1);
    run.finish();
    violates(&broken(run, |run| drop(run.record.ops.pop())), Invariant::I3);
}

#[test]
fn a_key_that_made_two_messages_is_found_in_answers_and_in_the_log() {
    let Crew { mut run, ann, chat, .. } = crew();
    let id = run.send_keyed(ann, chat, Digest(77), true);
    run.repeat(chat, id);
    run.send(ann, chat);
    run.finish();

    let report = broken(run, |run| {
        let other = run.of(chat).messages[1].seen;
        let repeat = &mut run.record.ops[7];
        repeat.outcome = Some(Outcome::Ok(Value::Message(other)));
    });
    violates(&report, Invariant::I4);

    let Crew { mut run, ann, chat, .. } = crew();
    run.send_keyed(ann, chat, Digest(77), false);
    run.send_keyed(ann, chat, Digest(78), false);
    run.finish();

    let report =
        broken(run, |run| run.of(chat).messages.last_mut().unwrap().client_id = Digest(77));
    violates(&report, Invariant::I4);
    assert!(report.counts.doubled > 0);
}

#[test]
fn reads_with_different_texts_are_found() {
    let Crew { mut run, ann, chat, .. } = crew();
    let read = run.history(ann, chat, 50);
    run.finish();
    let report = broken(run, |run| {
        let Some(Outcome::Ok(Value::Messages(page))) = &mut run.record.ops[read].outcome else {
            panic!()
        };
        page[0].text = Digest(5);
    });
    violates(&report, Invariant::I5);
}

#[test]
fn a_replica_with_another_history_is_found() {
    let Crew { mut run, .. } = crew();
    run.finish();
    let report = broken(run, |run| {
        run.log.views[1].messages.as_mut().unwrap().pop();
    });
    violates(&report, Invariant::I5);
}

#[test]
fn a_later_send_with_a_smaller_id_is_found() {
    let Crew { mut run, .. } = crew();
    run.finish();
    let report = broken(run, |run| {
        let (first, second) =
            (run.record.ops[0].outcome.clone(), run.record.ops[2].outcome.clone());
        (run.record.ops[0].outcome, run.record.ops[2].outcome) = (second, first);
    });
    violates(&report, Invariant::I8);
    assert!(report.counts.reordered > 0);
}

#[test]
fn sends_of_one_connection_out_of_order_are_found() {
    let Crew { mut run, .. } = crew();
    run.finish();

    let pipelined = |run: &mut super::Scenario| {
        for op in &mut run.record.ops {
            op.stream = Some(Stream { device: 0, connection: 1 });
            (op.invoked_us, op.completed_us) = (1, Some(1000));
        }
    };

    pipelined(&mut run);

    let report = broken(run, |run| run.record.ops.swap(0, 2));
    violates(&report, Invariant::I9);
    assert_eq!(report.count(Invariant::I8), 0, "{report}");
}

#[test]
fn reads_without_the_readers_own_write_are_found() {
    let Crew { mut run, ann, bob, chat, .. } = crew();
    let read = run.history(bob, chat, 50);
    run.finish();

    let report = broken(run, |run| {
        let Some(Outcome::Ok(Value::Messages(page))) = &mut run.record.ops[read].outcome else {
            panic!()
        };
        *page = page[..5].into();
    });
    violates(&report, Invariant::I10);

    let Crew { mut run, chat, .. } = crew();
    let seen = run.of(chat).messages[0].seen;
    run.edit(chat, 1);
    let read = run.history(ann, chat, 50);
    run.finish();

    let report = broken(run, |run| {
        let Some(Outcome::Ok(Value::Messages(page))) = &mut run.record.ops[read].outcome else {
            panic!()
        };
        page[0] = Seen { state: State::Sent, ..seen };
    });
    violates(&report, Invariant::I10);
}

#[test]
fn a_page_with_a_hole_is_found() {
    let Crew { mut run, ann, chat, .. } = crew();
    let read = run.history(ann, chat, 50);
    run.finish();
    let report = broken(run, |run| {
        let Some(Outcome::Ok(Value::Messages(page))) = &mut run.record.ops[read].outcome else {
            panic!()
        };
        *page = page.iter().filter(|seen| seen.id != 3).copied().collect();
    });
    violates(&report, Invariant::I10);
}

#[test]
fn a_read_older_than_an_earlier_read_or_device_is_found() {
    for other_reads in [1, 0] {
        let Crew { mut run, ann, bob, chat, .. } = crew();
        run.send(bob, chat);

        for _ in 0..other_reads {
            run.changes(ann, chat, 0);
        }

        let read = run.changes(ann, chat, 0);
        run.finish();

        let report = broken(run, |run| {
            let stale = Value::Changes { messages: Box::new([]), rev: 6, complete: true };
            run.record.ops[read].kind = Kind::Changes { chat, after_rev: 6 };
            run.record.ops[read].outcome = Some(Outcome::Ok(stale));
        });
        violates(&report, Invariant::I11);
    }
}

#[test]
fn wrong_counts_are_found() {
    let Crew { mut run, chat, .. } = crew();
    run.finish();
    violates(&broken(run, |run| run.of(chat).member_count = 3), Invariant::I15);
    let Crew { mut run, .. } = crew();
    run.finish();
    let report = broken(run, |run| run.log.views[0].chat.unread_count = Some(6));
    violates(&report, Invariant::I15);
}

#[test]
fn memory_over_the_bound_is_found() {
    let Crew { mut run, ann, .. } = crew();
    run.finish();
    run.limits.rss_bytes_max = Some(100);
    run.record.memory.push(MemorySample { process: ann, at_us: 1, rss_bytes: 100 });
    let report = broken(run, |run| run.record.memory[0].rss_bytes = 101);
    violates(&report, Invariant::I16);
}

#[test]
fn requests_left_open_or_answered_late_are_found() {
    for (completed_us, outcome) in [(None, None), (Some(40_000_000), Some(Outcome::Unknown))] {
        let Crew { mut run, ann, .. } = crew();
        run.op(ann, Kind::Other, Outcome::Unknown);
        run.finish();
        let report = broken(run, |run| {
            let last = run.record.ops.last_mut().unwrap();
            *last = Op { completed_us, outcome, ..last.clone() };
        });
        violates(&report, Invariant::I17);
    }
}

#[test]
fn a_secret_in_a_log_is_found_and_not_repeated() {
    let Crew { mut run, .. } = crew();
    run.finish();

    let secrets = ["sl_0123456789abcdef".to_owned(), "hunter2".to_owned(), "never seen".to_owned()];
    let text = |text: &str| Exposed { place: "the log".to_owned(), text: text.to_owned() };

    let with = |exposed: &[Exposed]| {
        check(&Evidence {
            record: &run.record,
            log: &run.log,
            secrets: &secrets,
            exposed,
            limits: run.limits,
        })
    };

    assert!(with(&[text("sl_0123456789abcdeg hunter")]).is_clean());

    let report = with(&[text("token=sl_0123456789abcdef hunter2")]);
    assert_eq!(report.count(Invariant::I18), 2, "{report}");
    assert!(!report.to_string().contains("hunter2"), "{report}");
}

#[test]
fn an_incomplete_record_is_not_clean() {
    let Crew { mut run, .. } = crew();
    run.finish();
    violates(&broken(run, |run| run.record.dropped = 1), Invariant::I0);
}
