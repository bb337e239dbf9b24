"""Training by Ray Train: the driver's side (`driver`), a worker's (`worker`), and the rows that it is given (`stream`)."""
