//! How far a call has come: a state machine without time, locks or bytes.

/// How far a call has come. A call that is not remembered any more has no progress.
///
/// ```text
///                     ┌─────────── put back ───────────┐
/// Foreground ─▶ Detached ─▶ Stored ─▶ Delivering ─▶ Delivered (for a marked resend)
///     └────────────┴─▶ Lost ◀─┴─── evicted   └─▶ Reported (for resends)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum CallProgress {
    /// In flight, and a client waits for it.
    Foreground,
    /// In flight, and its client disconnected: it is completed for the next identical request.
    Detached,
    /// The whole response waits for a client.
    Stored,
    /// The response is on its way to a client.
    Delivering,
    /// The response went to a client, as far as can be seen from here. It is replayed only to a
    /// request that is marked as a resend.
    Delivered,
    /// A client was told that the response is lost, and identical requests are told again.
    Reported,
    /// The call was or may have been charged, and there is no response in memory.
    Lost,
}

/// How often the result of a call is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replay {
    /// To the next identical request, once.
    Once,
    /// To every request with the same `Idempotency-Key`.
    Always,
}

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallEvent {
    /// The last client disconnected, and the call goes on without one.
    Detach,
    /// A client asked for the detached call by its key.
    Attach,
    /// The call ended, and nothing was charged for it.
    EndFree,
    /// The whole response is stored.
    Store,
    /// The call ended without a response, and it was or may have been charged.
    Lose,
    /// A client is given the response.
    Take,
    /// The client that was given the response disconnected before its end.
    PutBack,
    /// The response had to make room, or what was read from a file goes back there.
    Evict,
    /// A client received the response; `remember` keeps it for a resend.
    Deliver { remember: bool },
    /// A client was told that there is no response.
    Report,
    /// It is too old, or the client's next request shows that it heard.
    Expire,
    /// More losses are remembered than there is room for.
    Forget,
}

impl CallProgress {
    /// The progress after `event`. `None`: the call need not be remembered any more.
    ///
    /// An event that cannot happen to a call in this state changes nothing.
    pub(super) fn next(self, event: CallEvent, replay: Replay) -> Option<Self> {
        use CallEvent as On;
        let always = replay == Replay::Always;
        Some(match (self, event) {
            (Self::Foreground, On::Detach) => Self::Detached,
            (Self::Detached, On::Attach) if always => Self::Foreground,
            (Self::Foreground | Self::Detached, On::EndFree) => return None,
            (Self::Foreground | Self::Detached, On::Lose) => Self::Lost,
            // A file may hold the response of a lost call.
            (Self::Foreground | Self::Detached | Self::Lost, On::Store) => Self::Stored,
            (Self::Stored | Self::Delivered | Self::Lost, On::Take) if !always => Self::Delivering,
            (Self::Delivering, On::PutBack) => Self::Stored,
            (Self::Stored | Self::Delivering, On::Evict) => Self::Lost,
            // Lost: there was no room for the copy that a resend would get.
            (Self::Foreground | Self::Delivering | Self::Lost, On::Deliver { remember })
                if !always =>
            {
                return remember.then_some(Self::Delivered);
            }
            // In flight or being delivered: the client that waits is told.
            (Self::Foreground | Self::Delivering | Self::Lost, On::Report) if !always => {
                Self::Reported
            }
            (Self::Foreground | Self::Detached | Self::Delivering, On::Expire | On::Forget) => self,
            (_, On::Expire) => return None,
            (Self::Lost | Self::Reported, On::Forget) => return None,
            (unchanged, _) => unchanged,
        })
    }

    /// Whether attempts of the call may still be sent or answered.
    pub(super) fn is_in_flight(self) -> bool {
        matches!(self, Self::Foreground | Self::Detached)
    }

    /// Whether there is no response to give.
    pub(super) fn is_loss(self) -> bool {
        matches!(self, Self::Lost | Self::Reported)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events() -> impl Strategy<Value = Vec<CallEvent>> {
        let event = prop_oneof![
            Just(CallEvent::Detach),
            Just(CallEvent::Attach),
            Just(CallEvent::EndFree),
            Just(CallEvent::Store),
            Just(CallEvent::Lose),
            Just(CallEvent::Take),
            Just(CallEvent::PutBack),
            Just(CallEvent::Evict),
            any::<bool>().prop_map(|remember| CallEvent::Deliver { remember }),
            Just(CallEvent::Report),
            Just(CallEvent::Expire),
            Just(CallEvent::Forget),
        ];
        proptest::collection::vec(event, 0..40)
    }

    type Transition = (CallProgress, CallEvent, Option<CallProgress>);

    /// The transitions that `events` make.
    fn walk(events: Vec<CallEvent>, replay: Replay) -> Vec<Transition> {
        let (mut progress, mut walked) = (Some(CallProgress::Foreground), Vec::new());
        for event in events {
            let Some(before) = progress else { break };
            progress = before.next(event, replay);
            walked.push((before, event, progress));
        }
        walked
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn a_call_is_forgotten_only_when_it_was_free_a_client_was_told_or_its_time_is_over(events in events()) {
            for (_, event, progress) in walk(events, Replay::Once) {
                let told = matches!(
                    event,
                    CallEvent::EndFree | CallEvent::Deliver { remember: false }
                        | CallEvent::Expire | CallEvent::Forget
                );
                prop_assert!(progress.is_some() || told);
            }
        }

        #[test]
        fn the_result_of_a_key_stays_however_often_it_is_given(events in events()) {
            for (_, event, progress) in walk(events, Replay::Always) {
                prop_assert!(
                    progress.is_some()
                        || matches!(event, CallEvent::EndFree | CallEvent::Expire | CallEvent::Forget),
                    "{event:?}"
                );
                prop_assert!(!matches!(
                    progress,
                    Some(CallProgress::Delivering | CallProgress::Delivered | CallProgress::Reported)
                ));
            }
        }

        #[test]
        fn a_response_is_given_once_unless_it_is_put_back_or_asked_for_by_a_resend(events in events()) {
            let mut given = false;
            for (before, event, after) in walk(events, Replay::Once) {
                match (before, event, after) {
                    (CallProgress::Stored, CallEvent::Take, Some(CallProgress::Delivering)) => {
                        prop_assert!(!std::mem::replace(&mut given, true), "given twice");
                    }
                    (_, CallEvent::PutBack | CallEvent::Evict, _) => given = false,
                    _ => {}
                }
            }
        }

        #[test]
        fn what_is_over_is_never_in_flight_again(events in events(), always in any::<bool>()) {
            let replay = if always { Replay::Always } else { Replay::Once };
            let mut over = false;
            for (_, _, progress) in walk(events, replay) {
                let Some(progress) = progress else { break };
                prop_assert!(!(over && progress.is_in_flight()));
                over |= !progress.is_in_flight();
            }
        }
    }
}
