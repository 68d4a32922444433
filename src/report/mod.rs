//! The self-contained HTML report.
mod data;
mod plot;
mod scale;
mod series;
mod slice;
mod text;
