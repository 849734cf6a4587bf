from crossnorm_ns.representation.command import main

if __name__ == "__main__":
    main()
