"""Power loss: what a device promised must hold on every disk that the cut may have left behind."""
