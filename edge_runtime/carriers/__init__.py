"""Store and forward: bundles carried between devices, over folders and over neighbours, to the platform and back."""
