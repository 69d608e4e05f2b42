//! Runs them. Each was seen to fail when what it is about is broken.

macro_rules! interleavings {
    ($($module:ident: $($name:ident),+;)+) => {
        $($(
            #[test]
            fn $name() {
                tower_gemini_interleavings::$module::$name();
            }
        )+)+
    };
}

interleavings! {
    call_states: what_is_called_free_does_not_go_out, an_allowance_is_used_up_once,
        a_gate_is_settled_once;
    fair_queue: every_request_that_waits_is_served_and_none_beyond_the_places,
        every_response_that_waits_for_memory_gets_it, a_response_that_gives_up_lets_the_next_one_on;
    jittered_retry: no_token_is_spent_twice_or_lost, the_bucket_never_overflows,
        every_call_that_waits_for_the_end_of_an_outage_is_sent;
    spending: every_call_that_waits_for_money_is_served;
    walk: one_call_probes_at_a_time_and_no_wake_is_lost, no_more_calls_wait_than_may;
    writer: every_change_is_made_once_or_refused_however_the_file_is_closed;
}
