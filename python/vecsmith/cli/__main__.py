from vecsmith.cli import main

main()
