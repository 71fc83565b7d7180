"""The soak: hours of steady load with everything switched on, while servers are upgraded and clients come and go."""
