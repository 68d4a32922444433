//! The training loop: batch, step, rows, validation, checkpoint.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crate::config::Config;
use crate::dataset::OnBadFile;
use crate::error::{Error, Result, escape};
use crate::evaluate::{About, Validation, evaluate, not_learnt, write_report};
use crate::ops::{SCALARS, scalar};
use crate::optim::{Schedule, ema_weight};
use crate::report::{collapse, in_words, summarise};
use crate::run::Ui;
use crate::run::checkpoint::{KEY_CONFIG, KEY_STEP};
use crate::run::folder::CHECKPOINTS;
use crate::run::retention::{checkpoint_name, prune};
use crate::run::rows::Row;
use crate::session::{Model, RunData, load, state, view_options};
use crate::train::files::Files;
use crate::train::options::{KEY_FILES, RunOptions};
use crate::train::probing::{Probing, failed};
use crate::train::signals::StopFlag;
use crate::views::{Batch, Prefetch, PrefetchOptions, ViewOptions, VolumeSource};

/// Steps without a usable gradient, or samples that cannot be read, in a row after which a run is given up.
const FAILURES_MAX: u32 = 10;
/// Failed saves in a row after which a run is given up.
const SAVES_MAX: u32 = 3;
/// Batches prepared ahead.
const AHEAD: usize = 2;

/// A run in flight.
pub(super) struct Trainer<'a> {
    config: &'a Config,
    options: &'a RunOptions,
    data: &'a RunData,
    views: ViewOptions,
    model: Model,
    files: Files,
    probing: Option<Probing>,
    /// Steps submitted, all of them finished once `pending` is empty.
    done: u64,
    /// Rows of steps submitted and not collected, oldest first.
    pending: VecDeque<Row>,
    /// When the last step was collected, or the next was begun after a pause.
    clock: Instant,
    ui: &'a mut dyn Ui,
    /// Steps in a row without a usable gradient or batch.
    failures: u32,
    failed_saves: u32,
}

impl<'a> Trainer<'a> {
    /// Opens the files of the run; `model` comes with the number of steps it has behind it.
    pub(super) fn new(
        config: &'a Config,
        options: &'a RunOptions,
        data: &'a RunData,
        model: Model,
        done: u64,
        probing: Option<Probing>,
        ui: &'a mut dyn Ui,
    ) -> Result<Self> {
        Ok(Trainer {
            config,
            options,
            data,
            views: view_options(config, data.set.spacing_mm),
            model,
            files: Files::open(&options.out, done, probing.is_some())?,
            probing,
            done,
            pending: VecDeque::new(),
            clock: Instant::now(),
            ui,
            failures: 0,
            failed_saves: 0,
        })
    }

    /// Trains to the last step, a signal, or the end of the time.
    pub(super) fn train(mut self, stop: &StopFlag) -> Result<()> {
        let (begun, limit) = (Instant::now(), self.config.run.max_minutes);
        let plans_only = self.cut_on_device()?;
        self.begin_probing(stop)?;
        let mut prefetch = self.prefetch(plans_only)?;
        self.ui.start(self.config.run.steps);
        let mut saved = self.done;
        while self.done < self.config.run.steps {
            if let Err(error) = self.step(&mut prefetch) {
                self.ui.finish();
                // The state is sound; only the next batch is missing. Resuming tries it again.
                if matches!(error, Error::Data { .. }) && self.done > saved {
                    self.save(true)?;
                }
                return Err(error);
            }
            let last = self.done == self.config.run.steps;
            let out_of_time = limit > 0.0 && begun.elapsed().as_secs_f64() > limit * 60.0;
            let mut signal = stop.requested();
            let ends = last || out_of_time;
            let pauses = ends || signal.is_some() || self.is_due();
            if pauses {
                self.drain()?;
            }
            if signal.is_none()
                && (ends || self.done.is_multiple_of(self.config.run.validate_every))
            {
                self.validate()?;
            }
            if ends
                || signal.is_some()
                || self.done.is_multiple_of(self.config.run.checkpoint_every)
            {
                saved = if self.save(ends || signal.is_some())? { self.done } else { saved };
            }
            if signal.is_none() && (ends || self.is_probe_due()) && self.probe(stop) {
                signal = stop.requested();
                if signal.is_some() && saved != self.done {
                    saved = if self.save(true)? { self.done } else { saved };
                }
            }
            if let Some(signal) = signal {
                self.ui.finish();
                return Err(Error::Stopped { signal, step: self.done });
            }
            if out_of_time && !last {
                self.ui.note(&format!(
                    "the limit of {limit} minutes is reached after step {}",
                    self.done
                ));
                break;
            }
        }
        drop(prefetch);
        self.ui.finish();
        if let Some(maker) = &self.model.maker {
            let (copied, awaited) = maker.copied();
            self.ui.note(&format!(
                "{copied} volumes were copied to the device, {awaited} of them only when a step asked for them"
            ));
        }
        self.conclude(saved)
    }

    /// Lets views be cut on the device if they are to; returns whether batches come as plans only.
    fn cut_on_device(&mut self) -> Result<bool> {
        let plans_only = self.model.cut_on_device(self.config, self.data, &self.views)?;
        if let Some(maker) = &self.model.maker {
            let mib = maker.pool_len().div_ceil(1 << 20);
            self.ui.note(&format!(
                "training views are cut on the device; {mib} MiB of its memory are for volumes"
            ));
        }
        Ok(plans_only)
    }

    /// Whether a validation, a checkpoint or a probe follows this step.
    fn is_due(&self) -> bool {
        let run = &self.config.run;
        self.done.is_multiple_of(run.validate_every)
            || self.done.is_multiple_of(run.checkpoint_every)
            || self.is_probe_due()
    }

    fn is_probe_due(&self) -> bool {
        self.probing.as_ref().is_some_and(|probing| probing.is_due(self.done))
    }

    /// Measures the random encoder, and makes up for the probe of the checkpoint that the run is resumed from.
    fn begin_probing(&mut self, stop: &StopFlag) -> Result<()> {
        let Some(probing) = &mut self.probing else { return Ok(()) };
        probing.measure_random(&|| stop.requested().is_some(), self.ui)?;
        if probing.is_missing(self.done) {
            self.probe(stop);
        }
        match stop.requested() {
            // A checkpoint stands. At step 0 there is none: the loop ends after one step, and saves.
            Some(signal) if self.done > 0 => Err(Error::Stopped { signal, step: self.done }),
            _ => Ok(()),
        }
    }

    /// Probes the encoder as it is, which changes nothing of the training. A failure is a warning, an interrupted probe
    /// has no row. Returns whether there is something to probe on.
    fn probe(&mut self, stop: &StopFlag) -> bool {
        let Some(probing) = &self.probing else { return false };
        let step = self.done;
        match probing.row(&self.model, step, &|| stop.requested().is_some()) {
            Ok(Some((row, text))) => {
                self.files.probe(&row, self.ui);
                self.ui.note(&format!("probe at step {step}: {text}"));
            }
            Ok(None) => {}
            Err(error) => self.ui.warn(&failed(step, &error)),
        }
        true
    }

    fn prefetch(&self, plans_only: bool) -> Result<Prefetch> {
        let (set, train) = (Arc::clone(&self.data.set), self.data.train.clone());
        let source: VolumeSource = Arc::new(move |number| load(&set, train[number]));
        let options = PrefetchOptions {
            volumes: self.data.train.len(),
            views: self.views.clone(),
            augment: self.config.augment.clone(),
            seed: self.config.run.seed,
            first_step: self.done,
            threads: self.config.data.loader_threads.max(1),
            depth: AHEAD.max(self.config.data.loader_threads),
            plans_only,
        };
        Prefetch::start(source, options)
    }

    /// One step: next batch, forward, backward, update; the row of whichever step is finished by then.
    fn step(&mut self, prefetch: &mut Prefetch) -> Result<()> {
        let number = self.done;
        self.tell_profiler(number)?;
        let batch = prefetch.next_batch();
        self.done += 1;
        let mut row = self.blank_row();
        row.set("data_ms", prefetch.wait_ms());
        match batch {
            Ok(batch) => {
                if self.pending.is_empty() {
                    self.clock = Instant::now();
                }
                self.submit(number, &batch, &mut row)?;
                self.pending.push_back(row);
                prefetch.recycle(batch);
                // While the device works on the step.
                self.model.look_ahead(prefetch)?;
            }
            Err(error) if self.config.data.on_bad_file == OnBadFile::Stop => {
                self.done = number;
                self.drain()?;
                return Err(error);
            }
            Err(error) => {
                self.drain()?;
                self.ui.warn(&format!("step {} is left out: {error}", self.done));
                self.log(&row)?;
            }
        }
        if self.model.step.can_submit() { Ok(()) } else { self.collect() }
    }

    /// Brackets the steps that a profiler is to record, with nothing in flight on either side.
    fn tell_profiler(&mut self, number: u64) -> Result<()> {
        let Some((first, last)) = self.options.profile_steps else { return Ok(()) };
        if number == first || number == last {
            self.drain()?;
            self.model.step.profiler(number == first)?;
        }
        Ok(())
    }

    /// Waits for the oldest step in flight and writes its row.
    fn collect(&mut self) -> Result<()> {
        let Some(mut row) = self.pending.pop_front() else { return Ok(()) };
        self.model.step.collect()?;
        row.set("step_ms", self.clock.elapsed().as_secs_f64() * 1e3);
        self.clock = Instant::now();
        self.fill(&mut row);
        self.log(&row)
    }

    /// Waits for all steps in flight.
    fn drain(&mut self) -> Result<()> {
        while !self.pending.is_empty() {
            self.collect()?;
        }
        Ok(())
    }

    fn log(&mut self, row: &Row) -> Result<()> {
        self.files.step(row, self.ui);
        self.ui.step(row);
        self.judge(row)
    }

    fn submit(&mut self, number: u64, batch: &Batch, row: &mut Row) -> Result<()> {
        let optim = &self.config.optim;
        let schedule = Schedule {
            lr: optim.lr,
            warmup_steps: optim.warmup_steps,
            steps: self.config.run.steps,
            final_fraction: optim.final_lr_fraction,
        };
        let mut values = [0.0f32; SCALARS];
        let lr = schedule.at(number);
        row.set("lr", lr);
        values[scalar::LR] = lr as f32;
        let correction = |beta: f64| (1.0 - beta.powf((number + 1) as f64)) as f32;
        values[scalar::BIAS1] = correction(optim.beta1);
        values[scalar::BIAS2] = correction(optim.beta2);
        values[scalar::EMA] =
            ema_weight(number, optim.ema_momentum, optim.ema_gamma, optim.ema_interval) as f32;
        self.model.feed(batch)?;
        let Model { program, step, .. } = &mut self.model;
        step.write(program.update.scalars, &values)?;
        self.model.submit()
    }

    /// A row with all names in the order of the file, and no values yet.
    fn blank_row(&self) -> Row {
        let mut row = Row::new(self.done);
        row.set("loss", f64::NAN);
        for task in self.model.program.observables() {
            task.terms().iter().for_each(|term| row.set(term.name, f64::NAN));
        }
        for name in ["lr", "grad_norm", "step_ms", "data_ms"] {
            row.set(name, f64::NAN);
        }
        for task in self.model.program.observables() {
            row.set(format!("grad_{}", task.name()), f64::NAN);
        }
        row
    }

    /// Fills in what the step collected last has computed.
    fn fill(&self, row: &mut Row) {
        let Model { program, step, .. } = &self.model;
        let mut loss = 0.0;
        for recorded in &program.tasks {
            for (term, &id) in recorded.task.terms().iter().zip(&recorded.losses) {
                let value = step.result(id);
                row.set(term.name, value);
                loss += value * f64::from(self.config.tasks.weights.get(term.name) as f32);
            }
            let name = format!("grad_{}", recorded.task.name());
            row.set(name, step.result(recorded.norm));
        }
        row.set("loss", loss);
        row.set("grad_norm", step.result(program.update.norm));
    }

    /// Counts steps that changed nothing: a gradient that is not finite, or no batch.
    fn judge(&mut self, row: &Row) -> Result<()> {
        let (loss, norm) = (row.get("loss"), row.get("grad_norm"));
        if loss.is_finite() && norm.is_finite() {
            self.failures = 0;
            return Ok(());
        }
        self.failures += 1;
        self.ui.warn(&format!(
            "step {}: loss {loss} and gradient norm {norm}: the weights stay as they were",
            row.step
        ));
        if self.failures < FAILURES_MAX {
            return Ok(());
        }
        Err(Error::Unhealthy(format!(
            "training has diverged or its data cannot be used: {FAILURES_MAX} steps in a row gave no finite gradient, the last is step {}\n  \
             resume from an earlier checkpoint with a smaller optim.lr, or look at the data with `spatialssl doctor --data`",
            row.step
        )))
    }

    fn validate(&mut self) -> Result<()> {
        if self.data.validation.is_empty() {
            return Ok(());
        }
        let (draws, seed) = (self.config.run.validation_draws, self.config.data.split_seed);
        let what = Validation { indices: &self.data.validation, draws, seed };
        let cases = evaluate(&mut self.model, self.data, &self.views, &what)?;
        let tasks = self.model.program.observables();
        let summary = summarise(&tasks, &cases, self.done);
        self.files.validation(&summary.row, self.ui);
        let figures = in_words(&tasks, &summary.row);
        let headline =
            figures.first().map_or("", |first| first.split(" (").next().unwrap_or(first));
        self.ui.validation(self.done, &figures.join(", "), headline);
        if let Some(alarm) = collapse(&tasks, &summary) {
            self.ui.warn(&format!("collapse: {alarm}"));
        }
        Ok(())
    }

    /// Saves a checkpoint and prunes old ones. A failure is a warning, until it is the last chance or the third in a
    /// row.
    /// Returns whether it was saved.
    fn save(&mut self, is_last_chance: bool) -> Result<bool> {
        let folder = self.options.out.join(CHECKPOINTS);
        let path = folder.join(checkpoint_name(self.done));
        let metadata = BTreeMap::from([
            (KEY_STEP.to_string(), self.done.to_string()),
            (KEY_CONFIG.to_string(), self.config.to_toml()?),
            (KEY_FILES.to_string(), self.data.file_list()),
            ("spatialssl".to_string(), env!("CARGO_PKG_VERSION").to_string()),
        ]);
        // After a power loss the rows up to the checkpoint must be there too.
        self.files.sync(self.ui);
        match state::save(&self.model.program, &self.model.step, &path, &metadata) {
            Ok(_) => {
                self.failed_saves = 0;
                prune(&folder, self.config.run.keep_last, std::slice::from_ref(&path))?;
                Ok(true)
            }
            Err(error) => {
                self.failed_saves += 1;
                if is_last_chance || self.failed_saves >= SAVES_MAX {
                    return Err(error);
                }
                self.ui.warn(&format!(
                    "{error}\n  older checkpoints are kept; the next save is tried as usual"
                ));
                Ok(false)
            }
        }
    }

    /// Weights, report, and the last words.
    fn conclude(mut self, saved: u64) -> Result<()> {
        if saved != self.done {
            self.save(true)?;
        }
        let out = &self.options.out;
        let weights = out.join("weights.safetensors");
        let metadata = BTreeMap::from([
            (KEY_STEP.to_string(), self.done.to_string()),
            (KEY_CONFIG.to_string(), self.config.to_toml()?),
        ]);
        state::save_weights(&self.model.program, &self.model.step, &weights, &metadata)?;
        self.ui.note(&format!("weights of the encoder-decoder: {}", escape(&weights)));
        if self.data.validation.is_empty() {
            self.ui.note("no volume is held out, so there is no report; `spatialssl observe` makes one of any volumes");
            return Ok(());
        }
        let about = About {
            run: out,
            config: self.config,
            command: &self.options.command,
            steps: self.done,
        };
        let folder = out.join("report");
        let (page, row) =
            write_report(&mut self.model, self.data, &self.data.validation, &about, &folder)?;
        let figures = in_words(&self.model.program.observables(), &row).join(", ");
        self.ui.note(&format!("on held-out volumes: {figures}"));
        if let Some(what) = not_learnt(&self.model, &row) {
            self.ui.warn(&what);
        }
        self.ui.note(&format!("report: {}", escape(&page)));
        Ok(())
    }
}
