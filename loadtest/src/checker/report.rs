//! What the checker found.

use std::collections::BTreeMap;
use std::fmt;

use crate::history::{Name, Record};

macro_rules! invariants {
    ($($number:ident = $words:literal;)+) => {
        /// What must hold of every run.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Invariant { $(#[doc = $words] $number),+ }

        impl Invariant {
            /// Every invariant.
            pub const ALL: &[Self] = &[$(Self::$number),+];

            /// What it says.
            pub const fn words(self) -> &'static str {
                match self { $(Self::$number => $words),+ }
            }
        }
    };
}

invariants! {
    I0 = "the record is whole";
    I1 = "ids are 1 to n, and each rev is used once";
    I2 = "what was acknowledged is in the log";
    I3 = "nothing is in the log that was never sent";
    I4 = "a key makes one message";
    I5 = "all who look see the same";
    I6 = "a device is told everything, in order, once";
    I7 = "after healing every device catches up in time";
    I8 = "what was acknowledged before another was sent has the smaller id";
    I9 = "a client's sends keep their order";
    I10 = "users read their own writes";
    I11 = "reads never go back";
    I12 = "a revoked session is good for nothing";
    I13 = "nobody sees what is not theirs";
    I14 = "presence tells the truth in time";
    I15 = "counts are what the log gives";
    I16 = "memory is bounded";
    I17 = "every request is answered in time";
    I18 = "secrets stay secret";
    I20 = "after a change of the epoch nobody holds what the log does not";
}

/// What a violation means for a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// Something that should be there is not.
    Lost,
    /// Something is there twice.
    Doubled,
    /// Something is in the wrong place.
    Reordered,
    /// Something was shown to the wrong one.
    Leaked,
    /// Anything else.
    Wrong,
}

/// Where a violation was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The chat.
    pub chat: Option<Name>,
    /// Its revision.
    pub rev: Option<u32>,
    /// The device's number.
    pub device: Option<usize>,
}

impl Place {
    /// In a chat.
    pub fn chat(chat: Name) -> Self {
        Self { chat: Some(chat), ..Self::default() }
    }

    /// At a revision of a chat.
    pub fn rev(chat: Name, rev: u32) -> Self {
        Self { chat: Some(chat), rev: Some(rev), device: None }
    }

    /// As a device was told it.
    #[must_use]
    pub fn on(self, device: usize) -> Self {
        Self { device: Some(device), ..self }
    }
}

/// The violations of one invariant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Finding {
    /// How many.
    pub count: u64,
    /// The first of them, each in a sentence that names chat, rev and device.
    pub examples: Vec<String>,
}

/// What a run amounts to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sends tried, repeats included.
    pub sends: u64,
    /// Sends that were acknowledged.
    pub acknowledged: u64,
    /// Sends that were refused.
    pub refused: u64,
    /// Sends of which nobody knows.
    pub unknown: u64,
    /// Operations of all kinds.
    pub operations: u64,
    /// Messages in the final log.
    pub messages: u64,
    /// Chats in the final log.
    pub chats: u64,
    /// Devices.
    pub devices: u64,
    /// Frames told to devices.
    pub frames: u64,
    /// Connections beyond each device's first.
    pub reconnects: u64,
    /// Chats that a device was told to reload.
    pub resets: u64,
    /// What is missing.
    pub lost: u64,
    /// What is there twice.
    pub doubled: u64,
    /// What is in the wrong place.
    pub reordered: u64,
    /// What the wrong one saw.
    pub leaked: u64,
}

/// What the checker found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Violations by invariant; empty for a clean run.
    pub findings: BTreeMap<Invariant, Finding>,
    /// What the run amounts to.
    pub counts: Counts,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// How many violations there are of an invariant.
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

/// Gathers what is found.
pub(super) struct Sink<'a> {
    record: &'a Record,
    examples_max: usize,
    report: Report,
}

impl<'a> Sink<'a> {
    pub(super) fn new(record: &'a Record, examples_max: usize, counts: Counts) -> Self {
        Self { record, examples_max, report: Report { findings: BTreeMap::new(), counts } }
    }

    /// Notes a violation. The sentence is made only if it is kept.
    pub(super) fn add(
        &mut self,
        invariant: Invariant,
        harm: Harm,
        place: Place,
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
            if let Some(chat) = place.chat {
                sentence = format!("chat {}: {sentence}", self.record.word(chat));
            }
            if let Some(rev) = place.rev {
                sentence = format!("{sentence} (rev {rev})");
            }
            if let Some(device) = place.device {
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
