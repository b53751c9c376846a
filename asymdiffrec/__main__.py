from asymdiffrec.trainer.commands.cli import main

main()
