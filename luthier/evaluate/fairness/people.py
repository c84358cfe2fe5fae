"""Words that tell a person's gender, English and Spanish, written for Luthier. In: nothing. Out: the lists.

Names and words that are common words as well (Grace, Mark, Rose, Will) are left out.
"""

from __future__ import annotations

from typing import Literal

Language = Literal["en", "es"]

PEOPLE: dict[Language, str] = {
    "en": """he/she himself/herself man/woman men/women boy/girl boys/girls father/mother fathers/mothers dad/mom
        dads/moms daddy/mommy papa/mama son/daughter sons/daughters brother/sister brothers/sisters husband/wife
        husbands/wives
        boyfriend/girlfriend boyfriends/girlfriends uncle/aunt uncles/aunts nephew/niece nephews/nieces
        grandfather/grandmother grandpa/grandma grandson/granddaughter stepfather/stepmother gentleman/lady
        gentlemen/ladies king/queen prince/princess actor/actress actors/actresses waiter/waitress waiters/waitresses
        businessman/businesswoman businessmen/businesswomen policeman/policewoman salesman/saleswoman
        congressman/congresswoman spokesman/spokeswoman chairman/chairwoman male/female males/females
        masculine/feminine widower/widow groom/bride sir/madam guy/gal""",
    "es": """él/ella ellos/ellas hombre/mujer hombres/mujeres niño/niña niños/niñas chico/chica chicos/chicas
        muchacho/muchacha muchachos/muchachas padre/madre padres/madres papá/mamá hijo/hija hijos/hijas hermano/hermana
        hermanos/hermanas esposo/esposa marido/mujer novio/novia novios/novias tío/tía tíos/tías primo/prima
        sobrino/sobrina abuelo/abuela abuelos/abuelas nieto/nieta suegro/suegra señor/señora señores/señoras
        caballero/dama rey/reina príncipe/princesa actor/actriz actores/actrices camarero/camarera doctor/doctora
        doctores/doctoras profesor/profesora profesores/profesoras director/directora abogado/abogada maestro/maestra
        enfermero/enfermera vecino/vecina amigo/amiga amigos/amigas compañero/compañera jefe/jefa alumno/alumna
        escritor/escritora""",
}
"""Words for men and for women, one for one."""
ARTICLES = "el/la los/las un/una unos/unas del/de_la al/a_la este/esta ese/esa aquel/aquella nuestro/nuestra"
"""What turns in Spanish before a word that turns."""
TITLES: dict[Language, dict[str, str]] = {
    "en": {"mr": "ms", "mrs": "mr", "ms": "mr", "mister": "miss"},
    "es": {"sr": "sra", "sra": "sr"},
}
MEN: dict[Language, str] = {
    "en": """James John Robert Michael William David Richard Joseph Thomas Charles Daniel Matthew Anthony Steven Paul
        Andrew Joshua Kenneth Kevin Brian George Edward Ronald Timothy Jason Jeffrey Ryan Jacob Gary Nicholas Eric
        Jonathan Stephen Larry Justin Scott Brandon Benjamin Samuel Gregory Alexander Patrick Raymond Jack Dennis
        Jerry""",
    "es": """José Juan Luis Carlos Francisco Antonio Manuel Jesús Javier Pedro Miguel Alejandro Rafael Fernando Sergio
        Jorge Alberto Diego Pablo Andrés Ricardo Eduardo Roberto Enrique Raúl Óscar Álvaro Rubén Iván Mario Adrián
        Víctor Ignacio Gonzalo""",
}
WOMEN: dict[Language, str] = {
    "en": """Mary Jennifer Patricia Linda Elizabeth Barbara Susan Jessica Sarah Karen Lisa Nancy Sandra Betty Ashley
        Emily Kimberly Margaret Donna Michelle Carol Amanda Melissa Deborah Stephanie Rebecca Sharon Laura Cynthia Amy
        Kathleen Angela Shirley Brenda Emma Anna Pamela Nicole Samantha Katherine Christine Helen Debra Rachel Janet
        Catherine""",
    "es": """María Carmen Ana Isabel Laura Cristina Marta Lucía Paula Elena Sara Raquel Beatriz Patricia Silvia Teresa
        Alicia Claudia Julia Sofía Andrea Irene Natalia Inés Lorena Sonia Eva Nuria Verónica Gabriela Daniela Valeria
        Yolanda Fernanda""",
}
"""Common given names; each man's has the woman's at the same place."""
NOT_A_NOUN = """a an the and or but if so as than that because while when where who which what why how
    about above after against at before behind below between by down during for from in into of off on onto out over
    through to under until up
    with without again ago away back here there now then today tonight tomorrow yesterday too very well i you he she it
    we they me him us them my your his its our their is was were are be been has had have will would can could may might
    must should do does did not never always often just only also even still already soon yet this these those
    all both each some any no more most nothing something everything go come know feel think look leave be see make
    do"""
"""Words that no possessive stands before: after them "her" is "him", and "his" is "hers"."""
ENGLISH = "the and of is was to in it this that with for not you i my on are be his her she"
SPANISH = "el la los las de que y en un una es no con por para su se lo del al muy más pero como mi"
"""The commonest words of a language, which tell which of the two a text is in."""
