//! Makes simulators: the one place that knows how a scenario's weather is set up.
//!
//! A [`World`] is a sequence of [`Stretch`]es of time, each with its own weather. All of their
//! simulators share one seed and begin to run [`WARM_UP`] before the first call, so that outages
//! are under way when it comes.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use tokio::time::Instant;
use tower::Service;
use tower_gemini_sim::{
    Each, Fault, Latency, Outages, Quota, Record, Sim, SimBody, SimError, SimFuture, SimService,
    Size, Weather,
};

/// How long the weather runs before the first call.
pub const WARM_UP: Duration = Duration::from_secs(6 * 3600);

/// Weather that begins at some time after the first call is due.
#[derive(Debug, Clone)]
pub struct Stretch {
    /// When it begins, counted from the scenario's start.
    pub from: Duration,
    /// What comes and goes: what an oracle can know.
    pub outages: Vec<Outage>,
    /// Faults of single requests, which nobody can know.
    pub noise: Weather,
    /// When the server gives up.
    pub server_deadline: Duration,
}

/// Good and bad periods that follow each other.
#[derive(Debug, Clone)]
pub struct Outage {
    /// What happens in a bad one.
    pub fault: Fault,
    /// To which model; `None` is all of them together.
    pub model: Option<&'static str>,
    /// Mean length of a good period; zero begins with a bad one.
    pub up: Duration,
    /// Mean length of a bad one.
    pub down: Duration,
    /// The share of the requests that fails in it, for 1K, 2K and 4K.
    pub shares: [f64; 3],
}

/// From this share on an oracle sends nothing into an outage.
const HOPELESS: f64 = 0.95;

impl Outage {
    /// An outage in which all sizes fail, of 50 minutes on average: what fits the recovery times
    /// of users' reports (70 % within an hour, 90 % within two; APIYI, 503s on Nano Banana 2,
    /// 2026-03). `rate` is the share of the requests that fails over all time.
    pub fn at_rate(model: Option<&'static str>, rate: f64) -> Self {
        let down = Duration::from_secs(50 * 60);
        let up = down.mul_f64((1.0 - rate) / rate);
        Self { fault: Fault::HighDemand, model, up, down, shares: [1.0; 3] }
    }

    /// Each request by itself fails with this probability: weather without memory.
    pub fn independent(model: &'static str, rate: f64) -> Self {
        let (up, down) = (Duration::ZERO, Duration::from_secs(1_000_000 * 3600));
        Self { fault: Fault::HighDemand, model: Some(model), up, down, shares: [rate; 3] }
    }

    fn build(&self, fault: Fault, shares: [f64; 3]) -> Outages {
        let each = if self.model.is_some() { Each::Model } else { Each::Project };
        let outages = Outages::new(fault).each(each).mean_up(self.up).mean_down(self.down);
        let sizes = [Size::K1, Size::K2, Size::K4].into_iter().zip(shares);
        let outages = sizes.fold(outages, |outages, (size, share)| outages.share_at(size, share));
        match self.model {
            Some(model) => outages.model(model),
            None => outages,
        }
    }

    /// As it is.
    fn real(&self) -> Outages {
        self.build(self.fault.clone(), self.shares)
    }

    /// So that one request tells whether it is under way.
    fn certain(&self) -> Outages {
        let shares = self.shares.map(|share| if share < HOPELESS { 0.0 } else { 1.0 });
        self.build(Fault::HighDemand, shares)
    }
}

/// Everything about a simulated Gemini but the seed.
#[derive(Debug, Clone)]
pub struct World {
    /// The weather, in order of time.
    pub stretches: Vec<Stretch>,
    /// Limits of each model.
    pub quota: Quota,
    /// How long images take.
    pub latency: Latency,
    /// The hour of the UTC day at which the scenario starts.
    pub starts_at: u64,
}

impl World {
    /// The same without what goes wrong now and then.
    #[must_use]
    pub fn without_noise(mut self) -> Self {
        for stretch in &mut self.stretches {
            stretch.noise = Weather::calm();
        }
        self
    }

    /// Whether there are outages that begin and end, so that it helps to know of them.
    pub fn has_knowable_outages(&self) -> bool {
        let mut outages = self.stretches.iter().flat_map(|stretch| &stretch.outages);
        outages.any(|outage| !outage.up.is_zero())
    }

    /// The simulator. Its clock starts now, [`WARM_UP`] before the scenario.
    pub fn sky(&self, seed: u64) -> Sky {
        self.sky_of(seed, |stretch| {
            let outages = stretch.outages.iter().map(Outage::real);
            outages.fold(stretch.noise.clone(), Weather::outages)
        })
    }

    /// The same outages, in which every request fails, and nothing else: what an oracle looks at.
    pub fn outages_only(&self, seed: u64) -> Sky {
        let calm = Self { latency: Latency::none(), quota: Quota::UNLIMITED, ..self.clone() };
        calm.sky_of(seed, |stretch| {
            let outages = stretch.outages.iter().map(Outage::certain);
            outages.fold(Weather::calm(), Weather::outages)
        })
    }

    fn sky_of(&self, seed: u64, weather: impl Fn(&Stretch) -> Weather) -> Sky {
        let starts_at = Duration::from_secs((self.starts_at + 24) * 3600) - WARM_UP;
        let sim = |stretch: &Stretch| {
            Sim::builder()
                .seed(seed)
                .weather(weather(stretch))
                .quota(self.quota)
                .latency(self.latency.clone())
                .server_deadline(stretch.server_deadline)
                .tiny_images(true)
                .starts_at_utc(starts_at)
                .build()
        };
        let stretches = self.stretches.iter();
        let sims = stretches.map(|stretch| (stretch.from + WARM_UP, sim(stretch))).collect();
        Sky { sims, began: Instant::now() }
    }
}

/// The simulators of a world, each for its stretch of time.
#[derive(Debug)]
pub struct Sky {
    sims: Vec<(Duration, Sim)>,
    began: Instant,
}

impl Sky {
    /// A client of whichever simulator's time it is.
    pub fn service(&self) -> SkyService {
        let sims = self.sims.iter().map(|(from, sim)| (*from, sim.service())).collect();
        SkyService { sims, began: self.began }
    }

    /// The truth about every request.
    pub fn records(&self) -> Vec<Record> {
        self.sims.iter().flat_map(|(_, sim)| sim.ledger().requests().to_vec()).collect()
    }
}

/// The service of a [`Sky`].
#[derive(Debug, Clone)]
pub struct SkyService {
    sims: Arc<[(Duration, SimService)]>,
    began: Instant,
}

impl<B> Service<Request<B>> for SkyService
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
{
    type Response = Response<SimBody>;
    type Error = SimError;
    type Future = SimFuture;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), SimError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> SimFuture {
        let now = self.began.elapsed();
        let after = self.sims.partition_point(|(from, _)| *from <= now);
        let (_, sim) = &self.sims[after.saturating_sub(1)];
        sim.clone().call(request)
    }
}
