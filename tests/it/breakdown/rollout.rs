//! Replicas are restarted one after the other while users send.

use std::time::Duration;

use starling_loadtest::history::{DeviceEvent, Record};
use starling_loadtest::workload;

use super::Clients;
use crate::chaos::stage::{Stage, StageOptions};
use crate::support::{Balancer, Choice};

const USERS: usize = 30;
const DEVICES: usize = 4;
const WRITERS: usize = 10;
/// The number of restarts. Three replicas take turns.
const RESTARTS: usize = 10;
/// The stopping replica has up to half of the sockets. With this drain, at most a tenth of all
/// sockets is closed in a second.
const DRAIN_MS: &str = "6000";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the figures are the result of the test")]
async fn ten_rolling_restarts_lose_nothing_and_close_at_most_a_tenth_of_the_sockets_per_second() {
    let mut stage = Stage::set(3, &StageOptions::default()).await;
    for replica in &mut stage.replicas {
        replica.set("STARLING_DRAIN_MS", DRAIN_MS);
        replica.kill().await;
        replica.start();
    }

    let addresses =
        stage.replicas.iter().map(|replica| ([127, 0, 0, 1], replica.port).into()).collect();
    let balancer = Balancer::start(addresses, Choice::Fewest).await;
    for replica in &stage.replicas {
        replica.until_ready().await;
    }

    let herd = Clients::of(&stage, &[balancer.base()], (USERS, DEVICES), |number| number).await;
    let writers: Vec<usize> = (0..WRITERS).collect();
    let chats = [
        herd.community.group(&writers).await.unwrap(),
        herd.community.private(0, 11).await.unwrap(),
        herd.community.private(1, 12).await.unwrap(),
    ];
    let writing = herd.work.at_pace(Duration::from_millis(100));

    for (number, actor) in herd.community.actors[..WRITERS].iter().enumerate() {
        let own = if number < 2 {
            vec![chats[0].clone(), chats[number + 1].clone()]
        } else {
            vec![chats[0].clone()]
        };
        herd.work.spawn(workload::retry(writing.clone(), actor.clone(), own));
    }

    for restart in 0..RESTARTS {
        let number = restart % stage.replicas.len();
        // An orchestrator takes the replica out of the load balancer and sends SIGTERM.
        balancer.leave_out(Some(number));
        let replica = &mut stage.replicas[number];
        assert!(replica.terminate().await, "the replica exits with code 0");
        replica.start();
        replica.until_ready().await;
        balancer.leave_out(None);
    }

    let (record, report) = herd.end().await;
    assert!(report.is_clean(), "{report}");

    let (all, most) = disconnects(&record);
    println!(
        "{report}\n{all} disconnects of {} sockets, {most} in the worst second",
        USERS * DEVICES
    );
    assert!(all >= USERS * DEVICES * 2, "each restart closed its replica's sockets: {all}");
    assert!(most <= USERS * DEVICES / 10, "{most} of {} in a second", USERS * DEVICES);
}

/// The number of connections that ended, in all and within the worst second.
fn disconnects(record: &Record) -> (usize, usize) {
    let mut ends = Vec::new();
    for device in &record.devices {
        let mut open = false;
        for entry in &device.entries {
            match entry.told {
                DeviceEvent::Ready { .. } => open = true,
                // A refused connection does not count.
                DeviceEvent::Closed { .. } if std::mem::take(&mut open) => ends.push(entry.at_us),
                _ => {}
            }
        }
    }

    ends.sort_unstable();
    let within =
        |from: &u64| ends.iter().filter(|at| (*from..from + 1_000_000).contains(*at)).count();
    (ends.len(), ends.iter().map(within).max().unwrap_or(0))
}
