//! The final image, byte for byte, out of every shape of answer.

use bytes::Bytes;
use http_body_util::BodyExt;
use proptest::prelude::*;
use tower::ServiceExt;
use tower_gemini::final_image_extract::save_image;
use tower_gemini::verdict::{Charge, Outcome};
use tower_gemini_sim::{Fault, Refusal, Shape, Sim, hash64};

use crate::harness::{Ask, Scenario, TAG, cases, in_paused_time};

fn shapes() -> impl Strategy<Value = Shape> {
    (0u8..4, proptest::array::uniform10(any::<bool>())).prop_map(|(drafts, on)| Shape {
        drafts,
        drafts_marked: on[0],
        drafts_small: on[1],
        final_marked: on[2],
        thought_after_data: on[3],
        // After the final image only a marked draft can be told from it, and only where the final
        // one is not marked too.
        draft_after_final: on[4] && !on[2],
        text: on[5],
        text_last: on[6],
        empty_part: on[7],
        snake_case: on[8],
        data_first: on[9],
        no_usage: on[9] && on[0],
    })
}

fn truth(sim: &Sim) -> (u64, usize) {
    let ledger = sim.ledger();
    let record = ledger.of_call(TAG).last().unwrap();
    (record.image_hash.unwrap(), record.image_len.unwrap())
}

proptest! {
    #![proptest_config(cases(1000))]

    #[test]
    fn the_image_taken_out_is_the_one_the_server_made(shape in shapes(), ask in prop::sample::select(vec![Ask::Whole, Ask::Sse, Ask::Array])) {
        // Unmarked drafts beside a marked final image: nobody could tell which is final.
        prop_assume!(!(shape.final_marked && !shape.drafts_marked && shape.drafts > 0));
        let scenario = Scenario { ask, ..Scenario::new([Fault::Shaped(shape)]) };
        in_paused_time(async {
            let sim = scenario.sim();
            let image = scenario.stack().images(sim.service()).oneshot(scenario.request(TAG)).await.unwrap().into_body();
            let (hash, len) = truth(&sim);
            assert_eq!((hash64(&image.bytes), image.bytes.len()), (hash, len));
            assert_eq!(image.is_thought, shape.final_marked);
            assert_eq!(image.mime, "image/jpeg");
            assert!(image.width.is_some() && image.height.is_some());
            assert_eq!(image.drafts, u32::from(shape.drafts) + u32::from(shape.draft_after_final && shape.drafts > 0));

            // The same answer as JSON without the drafts holds that one image.
            let sim = scenario.sim();
            let json = scenario.stack().json(sim.service()).oneshot(scenario.request(TAG)).await.unwrap();
            let body = json.into_body().collect().await.unwrap().to_bytes();
            let text = String::from_utf8(body.to_vec()).unwrap();
            assert_eq!(text.matches("\"data\"").count(), 1, "{text}");

            // And so does the writer.
            let sim = scenario.sim();
            let raw = scenario.stack().raw(sim.service()).oneshot(scenario.request(TAG)).await.unwrap();
            let mut file = std::io::Cursor::new(Vec::new());
            let saved = save_image(raw, &mut file).await.unwrap();
            let mut file = file.into_inner();
            file.truncate(usize::try_from(saved.len).unwrap());
            assert_eq!(hash64(&file), truth(&sim).0);
        });
    }
}

#[test]
fn a_refusal_names_its_reason_and_its_charge() {
    let scenario = Scenario::new([Fault::Refused(Refusal::ImageSafety)]);
    in_paused_time(async {
        let sim = scenario.sim();
        let error = scenario
            .stack()
            .images(sim.service())
            .oneshot(scenario.request(TAG))
            .await
            .unwrap_err();
        assert!(error.is_refusal());
        assert_eq!((error.reason(), error.charge()), (Some("IMAGE_SAFETY"), Charge::Charged));
        assert!(error.to_string().starts_with("the image was refused, IMAGE_SAFETY"), "{error}");
        assert!(error.to_string().ends_with("; it was charged"), "{error}");
        assert_eq!(error.trail().unwrap().attempts().len(), 1);
    });
}

#[test]
fn an_answer_cut_short_is_an_error_and_never_an_image() {
    for at in (0..2000).step_by(37) {
        for fault in [Fault::CutBody { at }, Fault::TruncatedBody { at }] {
            let scenario = Scenario::new([fault.clone()]);
            in_paused_time(async {
                let sim = scenario.sim();
                match scenario.stack().images(sim.service()).oneshot(scenario.request(TAG)).await {
                    Ok(image) => {
                        assert_eq!(hash64(&image.into_body().bytes), truth(&sim).0, "{fault:?}")
                    }
                    Err(error) => {
                        assert_eq!(
                            error.verdict().outcome(),
                            Outcome::Interrupted,
                            "{fault:?}: {error}"
                        );
                        assert_ne!(error.charge(), Charge::None, "{fault:?}");
                    }
                }
            });
        }
    }
}

#[test]
fn a_large_answer_streams_through_untouched() {
    let scenario = Scenario { size: "2K", ..Scenario::new([Fault::Shaped(Shape::with_drafts(2))]) };
    in_paused_time(async {
        let sim = Sim::builder().script(scenario.faults.clone()).build();
        let response =
            scenario.stack().raw(sim.service()).oneshot(scenario.request(TAG)).await.unwrap();
        assert_eq!(response.body().verdict().outcome(), Outcome::Image);
        let body: Bytes = response.into_body().collect().await.unwrap().to_bytes();
        assert!(body.len() > 1_000_000, "{}", body.len());
        assert_eq!(
            sim.ledger().of_call(TAG).next().unwrap().delivered,
            tower_gemini_sim::Delivered::Full
        );
    });
}

// It was paid for: a bound on memory must not lose it.
#[test]
fn an_answer_longer_than_what_is_held_passes_with_its_drafts() {
    use tower_gemini::final_image_extract::FinalImageJsonLayer;
    use tower_gemini::{
        ClassifyGeminiErrorLayer, CollectRequestLayer, SingleAttemptLayer, compose,
    };

    in_paused_time(async {
        let drafts = Shape { drafts: 2, ..Shape::default() };
        let scenario = Scenario::new([Fault::Shaped(drafts)]);
        let ask = async |max_held_bytes: Option<usize>| {
            let sim = scenario.sim();
            // Parts of a big answer pass without being peeked whole.
            let strip = max_held_bytes.map_or_else(FinalImageJsonLayer::new, |most| {
                FinalImageJsonLayer::new().max_held_bytes(most)
            });
            let single = SingleAttemptLayer::new();
            let layers =
                (CollectRequestLayer::new(), strip, single, ClassifyGeminiErrorLayer::new());
            let service = compose(layers, sim.service());
            let body = service
                .oneshot(scenario.request(TAG))
                .await
                .unwrap()
                .into_body()
                .collect()
                .await
                .unwrap()
                .to_bytes();
            String::from_utf8(body.to_vec()).unwrap()
        };
        let (stripped, whole) = (ask(None).await, ask(Some(1000)).await);
        assert_eq!(stripped.matches("\"data\"").count(), 1);
        assert_eq!(whole.matches("\"data\"").count(), 3);
        let value: serde_json::Value = serde_json::from_str(&whole).unwrap();
        assert!(value["candidates"][0]["finishReason"].is_string(), "to its end");
    });
}
