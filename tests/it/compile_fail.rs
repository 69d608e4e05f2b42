//! Wrong stacks do not compile, and the message says which layer is missing.

#[test]
fn wrong_stacks_do_not_compile_and_say_which_layer_is_missing() {
    trybuild::TestCases::new().compile_fail("ui/*.rs");
}
