"""Run ssdgen from a checkout.  -> ssdgen.commands"""

from ssdgen.commands import main

# tuning starts processes, and each of them imports this file
if __name__ == "__main__":
    main()
