//! The report of the checker.

use std::collections::BTreeMap;
use std::fmt;

use crate::history::{Name, Record};

macro_rules! invariants {
    ($($number:ident = $words:literal;)+) => {
        /// A property that must hold in every run.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Invariant { $(#[doc = $words] $number),+ }

        impl Invariant {
            /// Every invariant.
            pub const ALL: &[Self] = &[$(Self::$number),+];

            /// The property in words.
            pub const fn words(self) -> &'static str {
                match self { $(Self::$number => $words),+ }
            }
        }
    };
}

invariants! {
    I0 = "the record is complete";
    I1 = "ids are 1 to n, and each rev is used once";
    I2 = "every acknowledged change is in the log";
    I3 = "the log has only messages that were sent";
    I4 = "a key makes one message";
    I5 = "all reads and frames agree";
    I6 = "a device is told everything, in order, once";
    I7 = "after the last fault every device catches up in time";
    I8 = "a send acknowledged before another began has the smaller id";
    I9 = "sends on one connection keep their order";
    I10 = "users read their own writes";
    I11 = "reads are monotonic";
    I12 = "a revoked session is good for nothing";
    I13 = "users receive only what they may see";
    I14 = "presence becomes correct in time";
    I15 = "counts match the log";
    I16 = "memory is bounded";
    I17 = "every request is answered in time";
    I18 = "secrets are not exposed";
    I20 = "after a change of the epoch no device holds data that the log lacks";
}

/// What a violation means for a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// An expected item is missing.
    Lost,
    /// An item appears twice.
    Doubled,
    /// An item is out of order.
    Reordered,
    /// A user received data that they must not see.
    Leaked,
    /// Any other violation.
    Wrong,
}

/// The location of a violation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Location {
    /// Chat id.
    pub chat: Option<Name>,
    /// Revision of the chat.
    pub rev: Option<u32>,
    /// Index of the device in the record.
    pub device: Option<usize>,
}

impl Location {
    /// A location in a chat.
    pub fn chat(chat: Name) -> Self {
        Self { chat: Some(chat), ..Self::default() }
    }

    /// A location at a revision of a chat.
    pub fn rev(chat: Name, rev: u32) -> Self {
        Self { chat: Some(chat), rev: Some(rev), device: None }
    }

    /// The same location, in the events of a device.
    #[must_use]
    pub fn on(self, device: usize) -> Self {
        Self { device: Some(device), ..self }
    }
}

/// The violations of one invariant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Finding {
    /// Number of violations.
    pub count: u64,
    /// The first violations, each in a sentence that names chat, rev and device.
    pub examples: Vec<String>,
}

/// The totals of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Attempted sends, repeats included.
    pub sends: u64,
    /// Sends that were acknowledged.
    pub acknowledged: u64,
    /// Sends that were refused.
    pub refused: u64,
    /// Sends with an unknown outcome.
    pub unknown: u64,
    /// Operations of all kinds.
    pub operations: u64,
    /// Messages in the final log.
    pub messages: u64,
    /// Chats in the final log.
    pub chats: u64,
    /// Devices in the record.
    pub devices: u64,
    /// Frames that devices received.
    pub frames: u64,
    /// Connections after the first one of each device.
    pub reconnects: u64,
    /// `reset` frames that devices received.
    pub resets: u64,
    /// Violations with [`Harm::Lost`].
    pub lost: u64,
    /// Violations with [`Harm::Doubled`].
    pub doubled: u64,
    /// Violations with [`Harm::Reordered`].
    pub reordered: u64,
    /// Violations with [`Harm::Leaked`].
    pub leaked: u64,
}

/// The result of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Violations by invariant; empty if the run is clean.
    pub findings: BTreeMap<Invariant, Finding>,
    /// The totals of the run.
    pub counts: Counts,
}

impl Report {
    /// Whether there is no violation.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// Number of violations of an invariant.
    pub fn count(&self, invariant: Invariant) -> u64 {
        self.findings.get(&invariant).map_or(0, |finding| finding.count)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { sends, acknowledged, refused, unknown, operations, messages, chats, .. } =
            self.counts;
        let Counts {
            devices, frames, reconnects, resets, lost, doubled, reordered, leaked, ..
        } = self.counts;
        writeln!(
            f,
            "sends: {sends}: {acknowledged} acknowledged, {refused} refused, {unknown} unknown"
        )?;
        writeln!(
            f,
            "operations: {operations}; in the log at the end: {messages} messages in {chats} chats"
        )?;
        writeln!(
            f,
            "devices: {devices}: {frames} frames, {reconnects} reconnects, {resets} resets"
        )?;
        writeln!(f, "lost: {lost}, doubled: {doubled}, reordered: {reordered}, leaked: {leaked}")?;

        if self.is_clean() {
            return writeln!(f, "clean: every invariant holds");
        }

        for (invariant, finding) in &self.findings {
            writeln!(
                f,
                "{invariant:?} does not hold ({}): {} violations",
                invariant.words(),
                finding.count
            )?;
            for example in &finding.examples {
                writeln!(f, "  {example}")?;
            }
        }

        Ok(())
    }
}

/// Collects the violations.
pub(super) struct Sink<'a> {
    record: &'a Record,
    examples_max: usize,
    report: Report,
}

impl<'a> Sink<'a> {
    pub(super) fn new(record: &'a Record, examples_max: usize, counts: Counts) -> Self {
        Self { record, examples_max, report: Report { findings: BTreeMap::new(), counts } }
    }

    /// Records a violation. `what` is called only if the report keeps the sentence.
    pub(super) fn add(
        &mut self,
        invariant: Invariant,
        harm: Harm,
        location: Location,
        what: impl FnOnce() -> String,
    ) {
        let counts = &mut self.report.counts;
        match harm {
            Harm::Lost => counts.lost += 1,
            Harm::Doubled => counts.doubled += 1,
            Harm::Reordered => counts.reordered += 1,
            Harm::Leaked => counts.leaked += 1,
            Harm::Wrong => {}
        }

        let finding = self.report.findings.entry(invariant).or_default();
        finding.count += 1;

        if finding.examples.len() < self.examples_max {
            let mut sentence = what();
            if let Some(chat) = location.chat {
                sentence = format!("chat {}: {sentence}", self.record.word(chat));
            }

            if let Some(rev) = location.rev {
                sentence = format!("{sentence} (rev {rev})");
            }

            if let Some(device) = location.device {
                let user = self
                    .record
                    .devices
                    .get(device)
                    .map_or("?", |found| self.record.word(found.user));
                sentence = format!("{sentence} (device {device} of user {user})");
            }

            finding.examples.push(sentence);
        }
    }

    pub(super) fn finish(self) -> Report {
        self.report
    }
}
