//! The pages of `docs/`, whose examples run as doc tests. They are here and not in a published
//! crate, which is packaged without them.

macro_rules! pages {
    ($($page:ident $file:literal),* $(,)?) => {
        $(
            #[cfg(doctest)]
            #[doc = include_str!(concat!("../docs/", $file))]
            mod $page {}
        )*
    };
}

pages! {
    choosing_a_chain "choosing-a-chain.md",
    guide "guide.md",
    jobs "jobs.md",
    moving_from_other_tools "moving-from-other-tools.md",
    quotas_and_tiers "quotas-and-tiers.md",
    two_replicas "two-replicas.md",
    what_a_call_can_cost "what-a-call-can-cost.md",
}
