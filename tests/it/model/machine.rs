//! The rules of attempts, charges, quota, deadline and crash as one machine: without bytes, tasks
//! or a clock, so that every state of it can be visited.
//!
//! It has one client that wants one image, one process that works for it, and what outlives the
//! process: the journal and the account. The provider's truth is part of the state, and no rule may
//! read it. A [`Flaw`] breaks one rule.

use std::mem::take;

/// Attempts of one call.
pub(crate) const ATTEMPTS: u8 = 3;
/// Requests that a process may make: the day's quota.
pub(crate) const QUOTA: u8 = 4;
/// Waits that fit into a call's deadline.
pub(crate) const WAITS: i8 = 3;
/// How often a process is killed, and how often the client asks with an allowance of one resend.
const KILLS: u8 = 2;
const PURCHASES: u8 = 2;

/// What can happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// The client sends its request, the same each time.
    Send { allows_a_resend: bool },
    /// The connection of the attempt under way is refused.
    NotSent,
    /// The provider has the whole request of the attempt under way.
    Received,
    /// The provider answers it.
    Answer(Answer),
    /// The wait before the next attempt is over.
    WaitOver,
    /// The deadline of the client's call passes.
    Deadline,
    /// The client disconnects.
    HangUp,
    /// The client reads the response that it was given to its end.
    Read,
    /// The process is killed. What the provider works on is charged or is not.
    Kill { is_charged: bool },
    /// The next process starts.
    Start,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Answer {
    /// 503, free.
    Overloaded,
    /// 429 of the minute, free, with a hint that is as long as two waits.
    RateLimited,
    /// 400, free, and no resend helps.
    BadRequest,
    /// 200 with an image, charged.
    Image,
    /// 200 with a refusal, charged.
    Refusal,
    /// The connection breaks: after the image was charged, or before.
    Lost { is_charged: bool },
}

impl Event {
    pub(crate) const ALL: [Self; 18] = [
        Self::Send { allows_a_resend: false },
        Self::Send { allows_a_resend: true },
        Self::NotSent,
        Self::Received,
        Self::Answer(Answer::Overloaded),
        Self::Answer(Answer::RateLimited),
        Self::Answer(Answer::BadRequest),
        Self::Answer(Answer::Image),
        Self::Answer(Answer::Refusal),
        Self::Answer(Answer::Lost { is_charged: false }),
        Self::Answer(Answer::Lost { is_charged: true }),
        Self::WaitOver,
        Self::Deadline,
        Self::HangUp,
        Self::Read,
        Self::Kill { is_charged: false },
        Self::Kill { is_charged: true },
        Self::Start,
    ];
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) client: Client,
    /// `None` between a kill and the next start.
    pub(crate) process: Option<Process>,
    pub(crate) journal: Record,
    pub(crate) account: Account,
    pub(crate) truth: Truth,
    kills: u8,
    purchases: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Client {
    /// It has no request under way.
    Away,
    /// It waits for a response; negative when the deadline has passed.
    Waits { time: i8, allowance: u8 },
    /// It was given a response, and has not read it.
    Holds,
    /// It has the result. Its next request would be another call.
    Done,
}

/// What is gone when the process is killed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    pub(crate) call: Option<Call>,
    pub(crate) kept: Record,
    pub(crate) quota: Quota,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Call {
    pub(crate) phase: Phase,
    attempts: u8,
    /// Its client has left it: it is completed for the next request.
    pub(crate) is_detached: bool,
    /// An attempt before this one may have been charged, and a resend was bought.
    pub(crate) was_bought: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// The attempt is on its way to the provider.
    Sending,
    /// The provider has it.
    Working,
    /// The next attempt is due after so many waits.
    Pausing(i8),
    /// The response is being given to the client: the attempt ends when it has read it.
    Responding,
}

/// What is known of the client's request, in the memory of the process or in the journal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) enum Record {
    #[default]
    Nothing,
    /// An attempt was or is about to be sent.
    InFlight,
    /// It was or may have been charged, and there is no response.
    Lost,
    /// The response is there.
    Stored,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Quota {
    pub(crate) counted: u8,
    pub(crate) reserved: u8,
    /// In truth: what the provider has received from this process.
    received: u8,
    /// Attempts that were abandoned while their requests went out: nobody knows whether the
    /// provider counts them.
    unsure: u8,
}

/// What was paid, in images: an interval, and what is reserved for attempts that have not ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Account {
    pub(crate) least: u8,
    pub(crate) most: u8,
    pub(crate) reserved: u8,
    /// Of it, for attempts that were charged and whose responses were not read to their end.
    pub(crate) arriving: u8,
}

/// What only the provider and an observer of everything know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Truth {
    pub(crate) paid: u8,
    /// Attempts that the provider had whole and that did not end provably free.
    exposed: u8,
    /// Resends that a client's allowance paid for.
    bought: u8,
}

/// What a client is told in place of a response that was paid for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// An error or a refusal, of which the last attempt was free.
    Free,
    /// It may have been charged.
    Maybe,
}

/// What must never happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Violation {
    /// A send after an attempt that was or may have been charged, and that nobody bought.
    SentAgain,
    /// More payments than one and those that were bought.
    PaidTwice,
    /// A send after the deadline of the call.
    SentTooLate,
    /// The quota that is counted is not what the provider received.
    QuotaWrong,
    /// The account's interval does not hold what was paid.
    AccountWrong,
}

impl Violation {
    pub(crate) const ALL: [Self; 5] =
        [Self::SentAgain, Self::PaidTwice, Self::SentTooLate, Self::QuotaWrong, Self::AccountWrong];
}

/// A rule that is broken, and what that must lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    ResendsWhatWasLost,
    ResendsRefusals,
    KeepsAllowanceThatWasUsed,
    RecordsAfterTheAttempt,
    DropsTheCallOfAClientThatLeaves,
    ForgetsALossThatWasReported,
    IgnoresTheDeadline,
    GivesBackQuotaOfFailures,
    CountsQuotaOfWhatWasNotSent,
    KeepsReservationsOfAbandonedAttempts,
    CountsLossesAsFree,
    CountsLossesAsPaid,
    ForgetsReservationsInACrash,
}

impl Flaw {
    pub(crate) const ALL: [(Self, &[Violation]); 13] = {
        use Violation::{AccountWrong, PaidTwice, QuotaWrong, SentAgain, SentTooLate};
        [
            (Self::ResendsWhatWasLost, &[SentAgain, PaidTwice]),
            (Self::ResendsRefusals, &[SentAgain, PaidTwice]),
            (Self::KeepsAllowanceThatWasUsed, &[SentAgain, PaidTwice]),
            (Self::RecordsAfterTheAttempt, &[SentAgain, PaidTwice]),
            (Self::DropsTheCallOfAClientThatLeaves, &[SentAgain, PaidTwice]),
            (Self::ForgetsALossThatWasReported, &[SentAgain, PaidTwice]),
            (Self::IgnoresTheDeadline, &[SentTooLate]),
            (Self::GivesBackQuotaOfFailures, &[QuotaWrong]),
            (Self::CountsQuotaOfWhatWasNotSent, &[QuotaWrong]),
            (Self::KeepsReservationsOfAbandonedAttempts, &[QuotaWrong]),
            (Self::CountsLossesAsFree, &[AccountWrong]),
            (Self::CountsLossesAsPaid, &[AccountWrong]),
            (Self::ForgetsReservationsInACrash, &[AccountWrong]),
        ]
    };
}

/// One step from a state to the next.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) state: State,
    pub(crate) told: Option<Told>,
    /// An attempt was begun.
    pub(crate) is_sent: bool,
    pub(crate) violations: Vec<Violation>,
    flaw: Option<Flaw>,
}

/// How the money of an attempt is settled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Money {
    Free,
    Maybe,
    Charged,
}

impl State {
    pub(crate) fn start() -> Self {
        Self {
            client: Client::Away,
            process: Some(Process::default()),
            journal: Record::Nothing,
            account: Account::default(),
            truth: Truth::default(),
            kills: 0,
            purchases: 0,
        }
    }

    pub(crate) fn events(&self) -> impl Iterator<Item = Event> {
        Event::ALL.into_iter().filter(|event| self.is_possible(*event))
    }

    pub(crate) fn is_possible(&self, event: Event) -> bool {
        let phase = self.call().map(|call| call.phase);
        let is_sending = phase == Some(Phase::Sending);
        let is_working = phase == Some(Phase::Working);
        let is_waiting = matches!(self.client, Client::Waits { .. });
        match event {
            _ if self.client == Client::Done => false,
            _ if self.process.is_none() => event == Event::Start,
            Event::Send { allows_a_resend } => {
                self.client == Client::Away && !(allows_a_resend && self.purchases == PURCHASES)
            }
            Event::NotSent | Event::Received => is_sending,
            Event::Answer(_) => is_working,
            Event::WaitOver => matches!(phase, Some(Phase::Pausing(_))),
            Event::Deadline => is_waiting && (is_sending || is_working),
            Event::HangUp => is_waiting || self.client == Client::Holds,
            Event::Read => self.client == Client::Holds,
            Event::Kill { is_charged } => self.kills < KILLS && (is_working || !is_charged),
            Event::Start => false,
        }
    }

    pub(crate) fn after(&self, event: Event, flaw: Option<Flaw>) -> Step {
        let state = self.clone();
        let mut step = Step { state, told: None, is_sent: false, violations: Vec::new(), flaw };
        step.happens(event);
        step.check();
        step
    }

    pub(crate) fn call(&self) -> Option<&Call> {
        self.process.as_ref()?.call.as_ref()
    }
}

impl Call {
    /// Its attempt has not ended.
    fn is_out(&self) -> bool {
        !matches!(self.phase, Phase::Pausing(_))
    }
}

impl Step {
    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    /// Of a process that runs: no other one takes part in an event.
    fn process(&mut self) -> &mut Process {
        self.state.process.as_mut().expect("only a process that runs does something")
    }

    fn call(&mut self) -> &mut Call {
        self.process().call.as_mut().expect("an event of an attempt has one")
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Send { allows_a_resend } => {
                let allowance = u8::from(allows_a_resend);
                self.state.purchases += allowance;
                self.state.client = Client::Waits { time: WAITS, allowance };
                self.look_up();
            }
            Event::Received => {
                self.process().quota.received += 1;
                self.call().phase = Phase::Working;
            }
            Event::NotSent => {
                let is_counted = self.has(Flaw::CountsQuotaOfWhatWasNotSent);
                self.settle(is_counted, Money::Free);
                self.free(Some(1), true);
            }
            Event::Answer(answer) => self.answer(answer),
            Event::WaitOver => {
                let call = self.call();
                if let Phase::Pausing(waits) = call.phase
                    && let Client::Waits { time, .. } = &mut self.state.client
                {
                    *time -= waits;
                }
                self.attempt();
            }
            Event::Deadline => {
                let call = self.call().clone();
                match call.phase {
                    // It goes on: what it comes to is for whoever asks again.
                    Phase::Working if !call.is_detached => {
                        self.call().is_detached = true;
                        self.tell(Told::Maybe);
                    }
                    _ => {
                        if !call.is_detached {
                            self.abandon();
                        }
                        self.tell(Told::Free);
                    }
                }
            }
            Event::HangUp => self.hang_up(),
            Event::Read => {
                self.arrived();
                self.end_call(Record::Nothing);
                self.state.client = Client::Done;
            }
            Event::Kill { is_charged } => self.kill(is_charged),
            Event::Start => self.state.process = Some(Process::default()),
        }
    }

    /// What is known of the client's request decides what becomes of it.
    fn look_up(&mut self) {
        let journal = self.state.journal;
        let process = self.process();
        // A call in flight is the client's own, and goes on without it: it waits.
        if process.call.is_some() {
            return;
        }
        if process.kept == Record::Nothing {
            process.kept = match journal {
                // Of a process that is gone.
                Record::InFlight => Record::Lost,
                known => known,
            };
            self.state.journal = self.process().kept;
        }
        let kept = self.process().kept;
        match kept {
            Record::Stored => self.state.client = Client::Holds,
            Record::Lost if !self.buys() => {
                if self.has(Flaw::ForgetsALossThatWasReported) {
                    self.end_call(Record::Nothing);
                }
                self.tell(Told::Maybe);
            }
            _ => {
                self.end_call(Record::Nothing);
                self.process().call = Some(Call {
                    phase: Phase::Sending,
                    attempts: 0,
                    is_detached: false,
                    was_bought: false,
                });
                self.attempt();
            }
        }
    }

    /// Uses up the allowance of the client that waits.
    fn buys(&mut self) -> bool {
        match &mut self.state.client {
            Client::Waits { allowance, .. } if *allowance > 0 => {
                if self.flaw != Some(Flaw::KeepsAllowanceThatWasUsed) {
                    *allowance -= 1;
                    self.state.truth.bought += 1;
                }
                true
            }
            _ => false,
        }
    }

    /// Reserves, records, and sends.
    fn attempt(&mut self) {
        let quota = &mut self.process().quota;
        if quota.counted + quota.reserved >= QUOTA {
            // Refused by the guard: a response of ours, and no attempt.
            self.end_call(Record::Nothing);
            return self.tell(Told::Free);
        }
        quota.reserved += 1;
        self.state.account.reserved += 1;
        if !self.has(Flaw::RecordsAfterTheAttempt) {
            self.state.journal = Record::InFlight;
        }
        let call = self.call();
        call.attempts += 1;
        call.phase = Phase::Sending;
        self.is_sent = true;
        if self.state.truth.exposed > self.state.truth.bought {
            self.violations.push(Violation::SentAgain);
        }
        if matches!(self.state.client, Client::Waits { time, .. } if time < 0) {
            self.violations.push(Violation::SentTooLate);
        }
    }

    fn answer(&mut self, answer: Answer) {
        let (money, is_charged) = match answer {
            Answer::Overloaded | Answer::RateLimited | Answer::BadRequest => (Money::Free, false),
            Answer::Image | Answer::Refusal => (Money::Charged, true),
            Answer::Lost { is_charged } => (Money::Maybe, is_charged),
        };
        let is_free = money == Money::Free;
        self.state.truth.paid += u8::from(is_charged);
        self.state.truth.exposed += u8::from(!is_free);
        let resends = match answer {
            Answer::Refusal => self.has(Flaw::ResendsRefusals),
            Answer::Lost { .. } => self.has(Flaw::ResendsWhatWasLost),
            _ => false,
        };
        if money == Money::Charged && !resends && !self.call().is_detached {
            return self.respond();
        }
        self.settle(!(is_free && self.has(Flaw::GivesBackQuotaOfFailures)), money);
        match answer {
            _ if resends => self.free(Some(1), false),
            Answer::Overloaded => self.free(Some(1), false),
            Answer::RateLimited => self.free(Some(2), false),
            Answer::BadRequest => self.free(None, false),
            Answer::Image | Answer::Refusal => {
                self.end_call(Record::Stored);
                self.next_client();
            }
            Answer::Lost { .. } => self.lose(),
        }
    }

    /// The last attempt was charged, and its response goes to the client.
    fn respond(&mut self) {
        self.call().phase = Phase::Responding;
        self.state.client = Client::Holds;
        self.state.account.arriving += 1;
    }

    /// An attempt has ended: what was reserved for it becomes what it came to.
    fn settle(&mut self, is_counted: bool, money: Money) {
        let quota = &mut self.process().quota;
        quota.reserved -= 1;
        quota.counted += u8::from(is_counted);
        let (least, most) = match money {
            Money::Free => (0, 0),
            Money::Maybe if self.has(Flaw::CountsLossesAsFree) => (0, 0),
            Money::Maybe if self.has(Flaw::CountsLossesAsPaid) => (1, 1),
            Money::Maybe => (0, 1),
            Money::Charged => (1, 1),
        };
        let account = &mut self.state.account;
        account.reserved -= 1;
        account.least += least;
        account.most += most;
        if money == Money::Free && !self.call().was_bought {
            self.state.journal = Record::Nothing;
        } else if self.has(Flaw::RecordsAfterTheAttempt) {
            self.state.journal = Record::InFlight;
        }
    }

    /// The last attempt was free: it is sent again where that may help, after so many waits.
    fn free(&mut self, waits: Option<i8>, is_error: bool) {
        let ignores_deadline = self.has(Flaw::IgnoresTheDeadline);
        let client = self.state.client;
        let call = self.call();
        let kept = if call.was_bought { Record::Lost } else { Record::Nothing };
        if call.is_detached {
            // Nobody waits for another one.
            self.end_call(kept);
            return self.next_client();
        }
        let fits = |waits: &i8| {
            let in_time = matches!(client, Client::Waits { time, .. } if *waits <= time);
            in_time || ignores_deadline
        };
        match waits.filter(fits).filter(|_| call.attempts < ATTEMPTS) {
            Some(waits) => call.phase = Phase::Pausing(waits),
            None => {
                // A response is the client's, whatever its call bought before.
                self.end_call(if is_error { kept } else { Record::Nothing });
                self.tell(Told::Free);
            }
        }
    }

    /// The response was read to its end, by the client or without it.
    fn arrived(&mut self) {
        if self.state.call().is_some_and(|call| call.phase == Phase::Responding) {
            self.state.account.arriving -= 1;
            self.settle(true, Money::Charged);
        }
    }

    /// The last attempt may have been charged, and there is no response.
    fn lose(&mut self) {
        let call = self.call().clone();
        if call.is_detached {
            self.end_call(Record::Lost);
            return self.next_client();
        }
        let in_time = matches!(self.state.client, Client::Waits { time, .. } if time >= 1);
        if call.attempts < ATTEMPTS && in_time && self.buys() {
            (self.call().phase, self.call().was_bought) = (Phase::Pausing(1), true);
        } else {
            self.end_call(Record::Lost);
            if self.has(Flaw::ForgetsALossThatWasReported) {
                self.end_call(Record::Nothing);
            }
            self.tell(Told::Maybe);
        }
    }

    /// The call is over. Memory and journal say what is left of it.
    fn end_call(&mut self, left: Record) {
        let process = self.process();
        (process.call, process.kept) = (None, left);
        self.state.journal = left;
    }

    /// A client that waited for a detached call looks what it came to.
    fn next_client(&mut self) {
        if matches!(self.state.client, Client::Waits { .. }) {
            self.look_up();
        }
    }

    /// An attempt is given up before the provider had all of its request.
    fn abandon(&mut self) {
        let kept = if self.call().was_bought { Record::Lost } else { Record::Nothing };
        if self.has(Flaw::KeepsReservationsOfAbandonedAttempts) {
            self.process().quota.reserved += 1;
        }
        self.settle(true, Money::Free);
        self.process().quota.unsure += 1;
        self.end_call(kept);
    }

    fn hang_up(&mut self) {
        self.state.client = Client::Away;
        let Some(call) = self.state.call().cloned().filter(|call| !call.is_detached) else {
            return;
        };
        match call.phase {
            Phase::Sending => self.abandon(),
            Phase::Working if self.has(Flaw::DropsTheCallOfAClientThatLeaves) => {
                self.state.truth.exposed += 1;
                self.state.truth.paid += 1;
                self.settle(true, Money::Maybe);
                self.end_call(Record::Nothing);
            }
            Phase::Working => self.call().is_detached = true,
            Phase::Pausing(_) => {
                self.end_call(if call.was_bought { Record::Lost } else { Record::Nothing });
            }
            Phase::Responding => {
                self.arrived();
                self.end_call(Record::Stored);
            }
        }
    }

    fn kill(&mut self, is_charged: bool) {
        self.state.kills += 1;
        let is_working = self.state.call().is_some_and(|call| call.phase == Phase::Working);
        self.state.truth.exposed += u8::from(is_working);
        self.state.truth.paid += u8::from(is_charged);
        self.state.client = Client::Away;
        self.state.process = None;
        if self.has(Flaw::ForgetsReservationsInACrash) {
            take(&mut self.state.account.reserved);
        }
    }

    /// The client's request has ended.
    fn tell(&mut self, told: Told) {
        self.told = Some(told);
        self.state.client = Client::Away;
    }

    /// What must hold in every state.
    fn check(&mut self) {
        let State { truth, account, process, .. } = &self.state;
        if truth.paid > 1 + truth.bought {
            self.violations.push(Violation::PaidTwice);
        }
        if truth.paid < account.least || truth.paid > account.most + account.reserved {
            self.violations.push(Violation::AccountWrong);
        }
        if let Some(Process { call, quota, .. }) = process {
            let is_sending =
                u8::from(call.as_ref().is_some_and(|call| call.phase == Phase::Sending));
            let is_out = u8::from(call.as_ref().is_some_and(Call::is_out));
            let taken = quota.counted + quota.reserved;
            let is_right = quota.reserved == is_out
                && (quota.received..=quota.received + quota.unsure).contains(&(taken - is_sending));
            if !is_right {
                self.violations.push(Violation::QuotaWrong);
            }
        }
    }
}
