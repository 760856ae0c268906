"""Networks that predict x, eps or v from (z_t, t, label), and how much of the variance's range to use."""
